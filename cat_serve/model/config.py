"""The generator's configuration and its presets. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cat_serve.errors import InvalidInput

Modulation = Literal["shift", "no_shift"]
MAX_STAGES = 4
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def require_model_name(name: str) -> None:
    """Refuse what cannot be the name of a model: it becomes a folder, a file and part of an address.

    Raises:
        InvalidInput: it holds something else than lower-case letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no name for a model.",
            hint="lower-case letters, digits, dots, hyphens and underscores, no slash",
        )


def scale_sizes(latent_size: int, patch: int) -> tuple[int, ...]:
    """Return the sides of the scales, smallest first: at most four, each half the next, none under `patch`.

    A grid of 32 with patch 2 has 4, 8, 16, 32; a grid of 8 has 2, 4, 8.
    """
    sides = [latent_size]
    while len(sides) < MAX_STAGES and sides[0] % 2 == 0 and sides[0] // 2 >= patch:
        sides.insert(0, sides[0] // 2)
    return tuple(sides)


def swiglu_width(width: int) -> int:
    """Return the hidden width of a SwiGLU that costs what a 4x MLP costs: floor(2/3 * 4C)."""
    return 8 * width // 3


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a CAT generator. Sizes are of the latent grid, not of the image."""

    depth: int
    width: int
    heads: int
    patch: int = 2
    latent_size: int = 32
    latent_channels: int = 4
    num_classes: int = 1000
    z_dim: int = 64
    class_dim: int = 64
    modulation: Modulation = "shift"

    psi_meaning = "w_lerp"  # of truncation_psi: toward the class's mean of w

    def __post_init__(self) -> None:
        if self.latent_size % self.patch:
            raise InvalidInput(
                f"A latent grid of {self.latent_size} cannot be cut into patches of {self.patch}."
            )
        if odd := [scale for scale in self.scales if scale % self.patch]:
            raise InvalidInput(
                f"A latent grid of {self.latent_size} has scales {self.scales}: "
                f"patches of {self.patch} do not cut {odd}."
            )
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise InvalidInput(
                f"width {self.width} with {self.heads} heads gives {self.width / self.heads:g} channels a head.",
                hint="2-D RoPE needs a whole multiple of 4",
            )
        if self.width % 4:
            raise InvalidInput(f"width {self.width} must be a multiple of 4 (sin-cos positions).")
        if self.depth % self.stages:
            raise InvalidInput(
                f"depth {self.depth} does not divide into {self.stages} equal stages.",
                hint=f"use a multiple of {self.stages}",
            )
        if self.modulation not in ("shift", "no_shift"):
            raise InvalidInput(f"modulation {self.modulation!r} is neither 'shift' nor 'no_shift'.")

    @property
    def scales(self) -> tuple[int, ...]:
        return scale_sizes(self.latent_size, self.patch)

    @property
    def stages(self) -> int:
        return len(self.scales)

    @property
    def tokens_per_side(self) -> int:
        return self.latent_size // self.patch

    @property
    def z_shape(self) -> tuple[int, ...]:
        return (self.z_dim,)

    @property
    def output_size(self) -> int:
        """Side of what is handed to the decoder."""
        return self.latent_size

    @property
    def output_channels(self) -> int:
        return self.latent_channels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GeneratorConfig:
        """Rebuild a configuration; an unknown or missing key is an error that names it."""
        known = {field.name for field in fields(cls)}
        required = {"depth", "width", "heads"}
        if unknown := sorted(values.keys() - known):
            raise InvalidInput(f"Unknown generator settings: {', '.join(unknown)}.")
        if missing := sorted(required - values.keys()):
            raise InvalidInput(f"Missing generator settings: {', '.join(missing)}.")
        return cls(**values)


# S to H are the sizes of the papers (CAT publishes M and H, GAT publishes XL). `nano` and `tiny` are for a CPU;
# `nano` has three stages at most.
# name        depth  width  heads
_SIZES = {
    "nano": (    6,   128,     4),
    "tiny": (   12,   192,     6),
    "S":    (   12,   384,     6),
    "B":    (   12,   768,    12),
    "M":    (   24,   768,    12),
    "L":    (   24,  1024,    16),
    "XL":   (   28,  1152,    16),
    "H":    (   32,  1280,    16),
}  # fmt: skip
SIZES = tuple(_SIZES)


def generator_preset(size: str, **changes: Any) -> GeneratorConfig:
    """Return the preset for `size`; keyword arguments replace single settings.

    Raises:
        InvalidInput: no such size.
    """
    if size not in _SIZES:
        raise InvalidInput(f"No generator size {size!r}.", hint=f"sizes: {', '.join(SIZES)}")
    depth, width, heads = _SIZES[size]
    return GeneratorConfig.from_dict({"depth": depth, "width": width, "heads": heads} | changes)
