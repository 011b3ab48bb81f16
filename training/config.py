"""Everything that decides a training run, and the presets. Imports torch through the discriminator only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cat_serve.errors import InvalidInput
from cat_serve.model.config import GeneratorConfig, generator_preset
from training.augment import FLIP_PROBABILITY, Fill, Resize
from training.discriminator import DiscriminatorConfig
from training.losses import Consistency
from training.representation import Representation

BASE_LR = 2e-4
BASE_BATCH = 512
BASE_WIDTH = 768
LR_FLOOR = 0.1
IMAGENET_NIMG = 1_281_167


@dataclass(frozen=True)
class TrainConfig:
    """One run. Times are in images; `base_lr` is for width 768 and batch 512.

    Attributes:
        gamma: weight of the penalties; it belongs to the size of the latents.
        gamma_final: what gamma falls to, geometrically, over the first `gamma_anneal_nimg` images (an
            addition to the method: small latents need a strong penalty at first and a weak one later).
        lr_decay_nimg: the images at the end of the run over which the learning rates fall linearly to a
            tenth (an addition; the method keeps them constant, which is 0 here).
    """

    name: str
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    total_nimg: int
    batch_size: int = BASE_BATCH
    base_lr: float = BASE_LR
    lr_decay_nimg: int = 0
    gamma: float = 1.0
    gamma_final: float | None = None
    gamma_anneal_nimg: int = 0
    consistency: Consistency = field(default_factory=Consistency)
    representation: Representation = field(default_factory=Representation)
    resize: Resize = "area"
    translation_fill: Fill = "zero"
    flip_probability: float = FLIP_PROBABILITY
    seed: int = 0

    def __post_init__(self) -> None:
        g, d = self.generator, self.discriminator
        for key in ("patch", "latent_size", "latent_channels", "num_classes"):
            if getattr(g, key) != getattr(d, key):
                raise InvalidInput(
                    f"Generator and discriminator disagree on {key}: "
                    f"{getattr(g, key)} and {getattr(d, key)}."
                )
        if min(self.batch_size, self.total_nimg) < 1:
            raise InvalidInput(
                f"batch_size {self.batch_size} and total_nimg {self.total_nimg} must be at least 1."
            )

    def lr(self, width: int) -> float:
        """Return the learning rate of a network of `width`: base * 768/C * sqrt(batch/512)."""
        return self.base_lr * BASE_WIDTH / width * math.sqrt(self.batch_size / BASE_BATCH)

    def lr_factor(self, nimg: int) -> float:
        """Return what the learning rates are multiplied with after `nimg` images."""
        if not self.lr_decay_nimg:
            return 1.0
        decayed = 1 - max(0, self.total_nimg - nimg) / self.lr_decay_nimg
        return 1 - (1 - LR_FLOOR) * max(0.0, decayed)

    def gamma_at(self, nimg: int) -> float:
        """Return the weight of the penalties after `nimg` images."""
        if self.gamma_final is None:
            return self.gamma
        progress = min(1.0, nimg / self.gamma_anneal_nimg) if self.gamma_anneal_nimg else 1.0
        return self.gamma * (self.gamma_final / self.gamma) ** progress

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        parts = {
            "generator": GeneratorConfig.from_dict(values["generator"]),
            "discriminator": DiscriminatorConfig.from_dict(values["discriminator"]),
            "consistency": Consistency(**values["consistency"]),
            "representation": Representation(**values["representation"]),
        }
        return cls(**(dict(values) | parts))


# ImageNet at 256 px: a discriminator of size B for every generator, DINOv2 as teacher; 40 epochs, H 60.
# preset          generator  epochs
_IMAGENET = {
    "cat-s2-256":  (     "S",     40),
    "cat-b2-256":  (     "B",     40),
    "cat-m2-256":  (     "M",     40),
    "cat-l2-256":  (     "L",     40),
    "cat-xl2-256": (    "XL",     40),
    "cat-h2-256":  (     "H",     60),
}  # fmt: skip


def _fashion_32() -> TrainConfig:
    grid = {"latent_size": 8, "latent_channels": 4, "num_classes": 10}
    return TrainConfig(
        name="fashion-32",
        generator=generator_preset("nano", **grid),
        # 27 tokens: one masked attention is quicker on a CPU than one attention per scale
        discriminator=DiscriminatorConfig(
            depth=6, width=128, heads=4, label_dim=256, attention="masked", **grid
        ),
        total_nimg=400_000,
        batch_size=64,
        base_lr=2.5e-4,
        lr_decay_nimg=300_000,
        gamma=0.01,
        gamma_final=0.001,
        gamma_anneal_nimg=200_000,
        translation_fill="edge",
        flip_probability=0.0,  # a mirrored latent is not the latent of a mirrored image, and it leaks
    )


def train_preset(name: str) -> TrainConfig:
    """Return a preset.

    Raises:
        InvalidInput: no such preset.
    """
    if name == "fashion-32":
        return _fashion_32()
    if name in _IMAGENET:
        size, epochs = _IMAGENET[name]
        return TrainConfig(
            name=name,
            generator=generator_preset(size),
            discriminator=DiscriminatorConfig(),
            representation=Representation("dinov2-vitb14"),
            total_nimg=epochs * IMAGENET_NIMG,
        )
    raise InvalidInput(f"No training preset {name!r}.", hint=f"presets: {', '.join(PRESETS)}")


PRESETS = ("fashion-32", *_IMAGENET)
