"""CAT's two losses for one batch: what is augmented, who is judged, who gets gradients. No devices, no logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cat_serve.errors import InvalidInput
from cat_serve.model.generator import Generator
from training.augment import Draw, augment, draw, to_scales
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

Losses = dict[str, Tensor]


@dataclass
class Objective:
    """Both losses of one run. `generator` here is the one that learns, not its average."""

    generator: Generator
    discriminator: Discriminator
    config: TrainConfig
    alignment: Alignment | None = None

    def discriminator_step(
        self,
        x_real: Tensor,
        y: Tensor,
        rng: torch.Generator,
        nimg: int = 0,
        photographs: Tensor | None = None,
    ) -> Losses:
        """Return D's losses: adversarial + gamma/2 (R1 + R2) + label + REPA. The generator gets no gradient.

        Args:
            x_real: latents [B, C, H, W]; y: int64 [B]; B a multiple of `penalty_every`.
            rng: where z, augmentation and penalty noise are drawn from.
            nimg: images seen so far, for the schedule of gamma.
            photographs: float32 [B, 3, H, W] in -1..1, for the teacher where there is one.
        """
        z = self.draw_z(len(y), rng)
        with torch.no_grad():
            fake = self.generator(z, y, stages=True)
        drawn = self.draw(len(y), rng)
        real_images = self.judged(x_real.unsqueeze(1), drawn)
        fake_images = self.judged(fake, self.draw(len(y), rng))

        sigma, quarter = self.config.penalty_sigma, slice(None, None, self.config.penalty_every)
        noised_real = add_penalty_noise([x[quarter] for x in real_images], rng, sigma)
        noised_fake = add_penalty_noise([x[quarter] for x in fake_images], rng, sigma)
        batches = (real_images, fake_images, noised_real, noised_fake)
        labels = torch.cat([y, y, y[quarter], y[quarter]])
        tokens = self.discriminator.tokens([torch.cat(x) for x in zip(*batches, strict=True)])
        logits = self.discriminator.logits(tokens, labels)
        real, fake, real_noised, fake_noised = logits.split([len(x[0]) for x in batches])

        adversarial = discriminator_loss(real, fake)
        r1 = approximate_penalty(real[quarter], real_noised, sigma)
        r2 = approximate_penalty(fake[quarter], fake_noised, sigma)
        total = adversarial + self.config.gamma_at(nimg) / 2 * (r1 + r2)
        losses = {"d_adv": adversarial, "r1": r1, "r2": r2, "margin": (real - fake).mean()}
        if self.config.label_weight:
            losses["label"] = label_loss(self.discriminator.class_logits(tokens[: len(y)]), y)
            total = total + self.config.label_weight * losses["label"]
        if self.alignment is not None:
            if photographs is None:
                raise InvalidInput("A teacher needs the photographs of the latents.")
            losses["repa"] = self.alignment.loss(
                self.discriminator,
                tokens[: len(y)],
                photographs,
                drawn,
                self.config.translation_fill,
            )
            total = total + self.alignment.weight * losses["repa"]
        return {"d_total": total} | losses

    def generator_step(self, x_real: Tensor, y: Tensor, rng: torch.Generator) -> Losses:
        """Return G's losses: adversarial + lambda * consistency. The discriminator gets no gradient."""
        z = self.draw_z(len(y), rng)
        w = self.generator.mapping(z, y)
        stages = torch.stack(self.generator.synthesis(w), dim=1)
        self.generator.update_w_avg(w, y)
        with torch.no_grad():
            real_images = self.judged(x_real.unsqueeze(1), self.draw(len(y), rng))
            logits_real = self.discriminator(real_images, y)
        with frozen(self.discriminator):
            logits_fake = self.discriminator(self.judged(stages, self.draw(len(y), rng)), y)
        adversarial = generator_loss(logits_real, logits_fake)
        options, scales = self.config.consistency, self.config.generator.scales
        consistency = consistency_loss(stages, options, scales, self.config.resize)
        total = adversarial + options.weight * consistency
        return {"g_total": total, "g_adv": adversarial, "consistency": consistency}

    def draw(self, batch: int, rng: torch.Generator) -> Draw:
        """Draw one augmentation for each sample."""
        config = self.config
        side = config.generator.latent_size
        return draw(batch, side, rng, config.flip_probability, config.augmentations)

    def judged(self, stages: Tensor, drawn: Draw) -> list[Tensor]:
        """Augment [B, K, C, H, W] (or [B, 1, ...] for real images) and resize to what D looks at."""
        augmented = augment(stages, drawn, self.config.translation_fill)
        return to_scales(augmented, self.config.generator.scales, self.config.resize)

    def draw_z(self, batch: int, rng: torch.Generator) -> Tensor:
        """Draw z ~ N(0, I), float32 [B, z_dim]."""
        z = torch.randn(batch, self.config.generator.z_dim, generator=rng)
        return z.to(self.generator.w_avg.device)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through `module` without reaching its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
