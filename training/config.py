"""Everything that decides a training run. Imports torch through the discriminator only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, get_args

from cat_serve.errors import InvalidInput
from cat_serve.model.config import GeneratorConfig, require_model_name
from training.augment import FLIP_PROBABILITY, PARTS, Fill, Part, Resize
from training.discriminator import DiscriminatorConfig
from training.losses import PENALTY_EVERY, PENALTY_SIGMA, Consistency
from training.representation import Representation

BASE_LR = 2e-4
BASE_BATCH = 512
BASE_WIDTH = 768
LR_FLOOR = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """One run. Times are in images; `base_lr` is for width 768 and batch 512.

    Attributes:
        gamma: weight of the penalties; it belongs to the size of the latents.
        gamma_final: what gamma falls to, geometrically, over the first `gamma_anneal_nimg` images (an
            addition to the method: small latents need a strong penalty at first and a weak one later).
        lr_decay_nimg: the images at the end of the run over which the learning rates fall linearly to a
            tenth (an addition; the method keeps them constant, which is 0 here).
        label_weight: of the cross-entropy of the label among D's logits of real images (an addition; 0, the
            method's, leaves open how D judges a wrong label).
        augmentations: which parts of DiffAugment are on, beside the flip.
        penalty_sigma: of the noise of the penalties; penalty_every: they look at every n-th sample.
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
    augmentations: tuple[Part, ...] = PARTS
    penalty_sigma: float = PENALTY_SIGMA
    penalty_every: int = PENALTY_EVERY
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        require_model_name(self.name)
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
        self._require_choices()
        self._require_ranges()

    def _require_choices(self) -> None:
        choices = {"resize": get_args(Resize), "translation_fill": get_args(Fill)}
        for key, accepted in choices.items():
            if (got := getattr(self, key)) not in accepted:
                raise InvalidInput(
                    f"{key} {got!r} is unknown.", hint=f"one of {', '.join(accepted)}"
                )
        if unknown := [part for part in self.augmentations if part not in PARTS]:
            raise InvalidInput(
                f"No augmentation {unknown[0]!r}.", hint=f"some of {', '.join(PARTS)}"
            )

    def _require_ranges(self) -> None:
        """Refuse numbers that no run can use."""
        ranges = {
            "gamma": self.gamma >= 0,
            "gamma_final": self.gamma_final is None or (self.gamma_final > 0 and self.gamma > 0),
            "base_lr": self.base_lr > 0,
            "flip_probability": 0 <= self.flip_probability <= 1,
            "penalty_sigma": self.penalty_sigma > 0,
            "penalty_every": self.penalty_every >= 1,
            "label_weight": self.label_weight >= 0,
        }
        if wrong := [key for key, fits in ranges.items() if not fits]:
            raise InvalidInput(f"{wrong[0]} {getattr(self, wrong[0])} is out of range.")

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
        """Rebuild a configuration; keys that older ones lack take their defaults.

        Raises:
            InvalidInput: an unknown key, or one without a default is missing; says which.
        """
        _require_keys(cls, values)
        parts: dict[str, Any] = {
            "generator": GeneratorConfig.from_dict(values["generator"]),
            "discriminator": DiscriminatorConfig.from_dict(values["discriminator"]),
        }
        for key, kind in (("consistency", Consistency), ("representation", Representation)):
            if key in values:
                _require_keys(kind, values[key])
                parts[key] = kind(**values[key])
        if "augmentations" in values:
            parts["augmentations"] = tuple(values["augmentations"])
        return cls(**{**values, **parts})

    def fitted(self, num_classes: int, latent_channels: int, latent_size: int) -> TrainConfig:
        """Return the same run for data of another shape."""
        grid: dict[str, Any] = {
            "num_classes": num_classes,
            "latent_channels": latent_channels,
            "latent_size": latent_size,
        }
        return replace(
            self,
            generator=replace(self.generator, **grid),
            discriminator=replace(self.discriminator, **grid),
        )


def _require_keys(kind: type, values: Mapping[str, Any]) -> None:
    known = fields(kind)
    required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if unknown := sorted(values.keys() - {f.name for f in known}):
        raise InvalidInput(f"Unknown settings of {kind.__name__}: {', '.join(unknown)}.")
    if missing := sorted(required - values.keys()):
        raise InvalidInput(f"Missing settings of {kind.__name__}: {', '.join(missing)}.")
