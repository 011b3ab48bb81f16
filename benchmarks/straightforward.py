"""One training step as one would first write it: what the package's own step is measured against.

The same losses from the same draws, but: a mask over the tokens of all scales, samples augmented one after
the other, a pass of the discriminator for every kind of image (the penalties judge their samples again), and
weights averaged one by one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model.generator import Generator
from training.augment import TRANSLATION, Draw, draw, resize
from training.config import TrainConfig
from training.discriminator import Discriminator
from training.objective import frozen

Images = list[Tensor]


@dataclass
class Straightforward:
    """Both losses, with the interface of `training.objective.Objective`; float32, no teacher."""

    generator: Generator
    discriminator: Discriminator
    config: TrainConfig

    def __post_init__(self) -> None:
        masked = copy.copy(self.discriminator)  # the same weights
        masked.config = replace(masked.config, attention="masked")
        self.judge = masked

    def discriminator_step(
        self, x_real: Tensor, y: Tensor, rng: torch.Generator, nimg: int = 0
    ) -> dict[str, Tensor]:
        """Return D's losses; see `Objective.discriminator_step`."""
        z = torch.randn(len(y), self.config.generator.z_dim, generator=rng)
        with torch.no_grad():
            fake = self.generator(z, y, stages=True)
        real_images = self.images(self._every_scale(x_real), rng)
        fake_images = self.images(fake, rng)
        noised = [self._noised(images, rng) for images in (real_images, fake_images)]
        real, fake_logits = self.judge(real_images, y), self.judge(fake_images, y)
        adversarial = functional.softplus(fake_logits - real).mean()
        r1 = self._penalty(real_images, noised[0], y)
        r2 = self._penalty(fake_images, noised[1], y)
        losses = {"d_adv": adversarial, "r1": r1, "r2": r2, "margin": (real - fake_logits).mean()}
        total = adversarial + self.config.gamma_at(nimg) / 2 * (r1 + r2)
        if self.config.label_weight:
            losses["label"] = self._label(real_images, y)
            total = total + self.config.label_weight * losses["label"]
        return {"d_total": total} | losses

    def generator_step(self, x_real: Tensor, y: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return G's losses; see `Objective.generator_step`."""
        z = torch.randn(len(y), self.config.generator.z_dim, generator=rng)
        w = self.generator.mapping(z, y)
        stages = self.generator.synthesis(w)
        for class_id in y.unique():
            mean = w[y == class_id].mean(dim=0).detach()
            self.generator.w_avg[class_id] = 0.995 * self.generator.w_avg[class_id] + 0.005 * mean
        with torch.no_grad():
            real = self.judge(self.images(self._every_scale(x_real), rng), y)
        with frozen(self.discriminator):
            fake = self.judge(self.images(torch.stack(stages, dim=1), rng), y)
        adversarial = functional.softplus(real - fake).mean()
        count = len(stages)
        distances = [
            functional.mse_loss(stages[k], stages[-1]) / (count - 1 - k) for k in range(count - 1)
        ]
        consistency = sum(distances) / (count - 1)
        total = adversarial + self.config.consistency.weight * consistency
        return {"g_total": total, "g_adv": adversarial, "consistency": consistency}

    def _every_scale(self, x: Tensor) -> Tensor:
        return torch.stack([x] * len(self.config.generator.scales), dim=1)

    def _noised(self, images: Images, rng: torch.Generator) -> Images:
        picked = [x[:: self.config.penalty_every] for x in images]
        noise = [torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in picked]
        return [x + self.config.penalty_sigma * n for x, n in zip(picked, noise, strict=True)]

    def _penalty(self, images: Images, noised: Images, y: Tensor) -> Tensor:
        every = self.config.penalty_every
        clean = self.judge([x[::every] for x in images], y[::every]).sum(dim=1)
        moved = self.judge(noised, y[::every]).sum(dim=1)
        return ((clean - moved) / self.config.penalty_sigma).square().mean()

    def _label(self, images: Images, y: Tensor) -> Tensor:
        """Judge the real images under every label, and take the cross-entropy of each scale."""
        logits = self.judge.class_logits(self.judge.tokens(images))
        scales = [functional.cross_entropy(logits[:, k], y) for k in range(logits.shape[1])]
        return torch.stack(scales).mean()

    def images(self, stages: Tensor, rng: torch.Generator) -> Images:
        """Augment [B, K, C, H, W] sample by sample and stage by stage; resize to the scales."""
        config, side = self.config, stages.shape[-1]
        drawn = draw(len(stages), side, rng, config.flip_probability, config.augmentations)
        samples = [self._augmented(sample, drawn, i) for i, sample in enumerate(stages)]
        scales = config.generator.scales
        return [
            torch.stack([resize(sample[k][None], scale, config.resize)[0] for sample in samples])
            for k, scale in enumerate(scales)
        ]

    def _augmented(self, sample: Tensor, drawn: Draw, i: int) -> Images:
        """Augment the stages [K, C, H, W] of sample i."""
        side, final = sample.shape[-1], sample[-1] + float(drawn.brightness[i])
        channel_mean = final.mean(dim=0, keepdim=True)
        final = (final - channel_mean) * float(drawn.saturation[i]) + channel_mean
        image_mean = final.mean()
        stages = []
        for h in sample:
            x = h + float(drawn.brightness[i])
            x = (x - channel_mean) * float(drawn.saturation[i]) + channel_mean
            x = (x - image_mean) * float(drawn.contrast[i]) + image_mean
            x = x.flip(-1) if drawn.flip[i] else x
            x = self._moved(x, int(drawn.shift_row[i]), int(drawn.shift_column[i]))
            hole, half = torch.ones(side, side, dtype=x.dtype), side // 4
            row, column = int(drawn.cutout_row[i]), int(drawn.cutout_column[i])
            hole[
                max(row - half, 0) : max(row + half, 0),
                max(column - half, 0) : max(column + half, 0),
            ] = 0
            stages.append(x * hole)
        return stages

    def _moved(self, x: Tensor, down: int, right: int) -> Tensor:
        side = x.shape[-1]
        reach = round(side * TRANSLATION)
        mode = "constant" if self.config.translation_fill == "zero" else "replicate"
        padded = functional.pad(x[None], (reach, reach, reach, reach), mode)[0]
        top, left = reach - down, reach - right
        return padded[:, top : top + side, left : left + side]


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights, one tensor after the other."""
    for target, source in zip(ema.parameters(), model.parameters(), strict=True):
        target.copy_(decay * target + (1 - decay) * source)
    for target, source in zip(ema.buffers(), model.buffers(), strict=True):
        target.copy_(source)
