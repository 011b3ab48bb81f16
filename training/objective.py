"""CAT's two losses for one batch: what is augmented, who is judged, who gets gradients. No devices, no logs.

The batch may be one process's share of a larger one. Every loss is then this share's part of the mean over the
whole batch: the parts of all processes add up to it, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cat_serve.errors import InvalidInput
from cat_serve.model.generator import Generator
from training.augment import Draw, augment, draw, rows_of, to_scales
from training.config import TrainConfig
from training.discriminator import Discriminator
from training.losses import (
    add_penalty_noise,
    approximate_penalty,
    consistency_loss,
    discriminator_loss,
    generator_loss,
    label_loss,
)
from training.representation import Alignment
from training.share import Share

Losses = dict[str, Tensor]
Images = list[Tensor]  # one for each scale


class Judged(NamedTuple):
    """D's logits [B, K] in float32, and the tokens of the real images; the last four are of every n-th sample."""

    real: Tensor
    fake: Tensor
    tokens: Tensor
    picked_real: Tensor
    picked_fake: Tensor
    noised_real: Tensor
    noised_fake: Tensor


def _alone(rows: Tensor, share: Share) -> Tensor:
    return rows


@dataclass
class Objective:
    """Both losses of one run. `generator` here is the one that learns, not its average.

    Attributes:
        bf16: run the trunks under autocast. Mapping, logits, losses and all that the penalties look at stay
            float32, since these divide by sigma what rounding leaves.
        gather: puts the rows of all processes together; the identity for one that is alone.
    """

    generator: Generator
    discriminator: Discriminator
    config: TrainConfig
    alignment: Alignment | None = None
    bf16: bool = False
    gather: Callable[[Tensor, Share], Tensor] = _alone

    def discriminator_step(
        self,
        x_real: Tensor,
        y: Tensor,
        rng: torch.Generator,
        nimg: int = 0,
        photographs: Tensor | None = None,
        share: Share | None = None,
    ) -> Losses:
        """Return D's losses: adversarial + gamma/2 (R1 + R2) + label + REPA. The generator gets no gradient.

        Args:
            x_real: latents [B, C, H, W]; y: int64 [B].
            rng: where z, augmentation and penalty noise are drawn from, for the whole batch.
            nimg: images seen so far, for the schedule of gamma.
            photographs: float32 [B, 3, H, W] in -1..1, for the teacher where there is one.
            share: which samples of the batch these are; by default all of it.
        """
        share = share or Share.whole(len(y))
        z = self.draw_z(share, rng)
        with torch.no_grad():
            fake = self.stages(self.generator.mapping(z, y))
        drawn = self.draw(share, rng)
        real_images = self.judged(x_real.unsqueeze(1), drawn)
        judged = self._judge(real_images, self.judged(fake, self.draw(share, rng)), y, rng, share)

        losses = {"d_adv": discriminator_loss(judged.real, judged.fake)}
        losses["margin"] = (judged.real - judged.fake).mean()
        if self.config.label_weight:
            losses["label"] = label_loss(self.discriminator.class_logits(judged.tokens), y)
        if self.alignment is not None:
            losses["repa"] = self._align(judged.tokens, photographs, drawn)
        losses = {key: share.of_mean(loss) for key, loss in losses.items()}
        losses["r1"], losses["r2"] = self._penalties(judged, share)
        total = losses["d_adv"] + self.config.gamma_at(nimg) / 2 * (losses["r1"] + losses["r2"])
        if "label" in losses:
            total = total + self.config.label_weight * losses["label"]
        if self.alignment is not None:
            total = total + self.alignment.weight * losses["repa"]
        return {"d_total": total} | losses

    def generator_step(
        self, x_real: Tensor, y: Tensor, rng: torch.Generator, share: Share | None = None
    ) -> Losses:
        """Return G's losses: adversarial + lambda * consistency. The discriminator gets no gradient."""
        share = share or Share.whole(len(y))
        w = self.generator.mapping(self.draw_z(share, rng), y)
        stages = self.stages(w)
        self.generator.update_w_avg(self.gather(w, share), self.gather(y, share))
        with torch.no_grad():
            real_images = self.judged(x_real.unsqueeze(1), self.draw(share, rng))
            logits_real = self.discriminator.logits(self._tokens(real_images), y)
        with frozen(self.discriminator):
            fake_images = self.judged(stages, self.draw(share, rng))
            logits_fake = self.discriminator.logits(self._tokens(fake_images), y)
        adversarial = share.of_mean(generator_loss(logits_real, logits_fake))
        options, scales = self.config.consistency, self.config.generator.scales
        distance = consistency_loss(stages, options, scales, self.config.resize)
        consistency = share.of_mean(distance)
        total = adversarial + options.weight * consistency
        return {"g_total": total, "g_adv": adversarial, "consistency": consistency}

    # --- who is judged -----------------------------------------------------------------------------

    def _judge(
        self, real: Images, fake: Images, y: Tensor, rng: torch.Generator, share: Share
    ) -> Judged:
        """Judge real, fake, and every n-th of both with noise; in float32 all in one pass."""
        picked, part = share.every(self.config.penalty_every)
        sigma, discriminator = self.config.penalty_sigma, self.discriminator
        some_real, some_fake = ([x[picked] for x in images] for images in (real, fake))
        noised_real = add_penalty_noise(some_real, rng, sigma, part)
        noised_fake = add_penalty_noise(some_fake, rng, sigma, part)
        labels = y[picked]
        first: tuple[Images, ...] = (real, fake)
        if not self.bf16:
            first = (*first, noised_real, noised_fake)
        counts = [len(images[0]) for images in first]
        tokens = self._tokens(_stacked(*first))
        of_real = tokens[: len(y)]
        of_first = torch.cat([y, y, labels, labels][: len(first)])
        logits = discriminator.logits(tokens, of_first).split(counts)
        if not self.bf16:
            clean = (logits[0][picked], logits[1][picked])
            return Judged(logits[0], logits[1], of_real, *clean, *logits[2:])
        images = _stacked(some_real, some_fake, noised_real, noised_fake)
        exact = discriminator.logits(discriminator.tokens(images), labels.repeat(4))
        return Judged(logits[0], logits[1], of_real, *exact.split(len(labels)))

    def _penalties(self, judged: Judged, share: Share) -> tuple[Tensor, Tensor]:
        """Return this share's parts of R1 and R2."""
        _, part = share.every(self.config.penalty_every)
        if not part.weight:  # none of the samples is looked at
            return judged.picked_real.sum(), judged.picked_fake.sum()
        sigma = self.config.penalty_sigma
        r1 = approximate_penalty(judged.picked_real, judged.noised_real, sigma)
        r2 = approximate_penalty(judged.picked_fake, judged.noised_fake, sigma)
        return part.of_mean(r1), part.of_mean(r2)

    def _align(self, tokens: Tensor, photographs: Tensor | None, drawn: Draw) -> Tensor:
        if photographs is None or self.alignment is None:
            raise InvalidInput("A teacher needs the photographs of the latents.")
        fill = self.config.translation_fill
        with self._autocast():
            return self.alignment.loss(self.discriminator, tokens, photographs, drawn, fill)

    # --- what they are shown -----------------------------------------------------------------------

    def stages(self, w: Tensor) -> Tensor:
        """Return h_1 .. h_K of w [B, width]: float32 [B, K, C, H, W]."""
        with self._autocast():
            return torch.stack(self.generator.synthesis(w), dim=1)

    def _tokens(self, images: Images) -> Tensor:
        with self._autocast():
            return self.discriminator.tokens(images)

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.generator.w_avg.device.type, torch.bfloat16)

    def draw(self, share: Share, rng: torch.Generator) -> Draw:
        """Draw one augmentation for each sample of the batch; return the share's."""
        config = self.config
        side = config.generator.latent_size
        drawn = draw(share.total, side, rng, config.flip_probability, config.augmentations)
        return rows_of(drawn, share.rows)

    def judged(self, stages: Tensor, drawn: Draw) -> Images:
        """Augment [B, K, C, H, W] (or [B, 1, ...] for real images) and resize to what D looks at."""
        augmented = augment(stages, drawn, self.config.translation_fill)
        return to_scales(augmented, self.config.generator.scales, self.config.resize)

    def draw_z(self, share: Share, rng: torch.Generator) -> Tensor:
        """Draw z ~ N(0, I) for each sample of the batch; return the share's, float32 [B, z_dim]."""
        z = torch.randn(share.total, self.config.generator.z_dim, generator=rng)
        return z[share.rows].to(self.generator.w_avg.device)


def _stacked(*batches: Images) -> Images:
    return [torch.cat(x) for x in zip(*batches, strict=True)]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through `module` without reaching its parameters; then they are as before.

    With checkpointing this must last until the backward pass, which runs the module once more.
    """
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
