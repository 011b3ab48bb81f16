"""DiffAugment in latent space (Zhao et al., arXiv 2006.10738), drawn once per sample.

One draw is replayed on all stages of a sample; colour statistics are those of its final stage. Augment on
the full grid first, then resize to the scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

COLOUR_PROBABILITY = 0.5
FLIP_PROBABILITY = 0.4
TRANSLATION = 1 / 8
CUTOUT = 1 / 2

Resize = Literal["area", "bilinear"]
Fill = Literal["zero", "edge"]
Part = Literal["colour", "translation", "cutout"]
PARTS: tuple[Part, ...] = ("colour", "translation", "cutout")


@dataclass(frozen=True)
class Draw:
    """One augmentation per sample: colour factors [B] and offsets int64 [B], in cells of the full grid."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift_row: Tensor
    shift_column: Tensor
    cutout_row: Tensor
    cutout_column: Tensor
    flip: Tensor


def draw(
    batch: int,
    side: int,
    generator: torch.Generator,
    flip_probability: float = FLIP_PROBABILITY,
    parts: Sequence[Part] = PARTS,
) -> Draw:
    """Draw for `batch` samples on a grid of `side`; samples without colour get the neutral factors.

    Parts that are left out are neutral for all samples; what the others draw does not change.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    def integer(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (batch,), generator=generator)

    reach = round(side * TRANSLATION)
    coloured = torch.rand(batch, generator=generator) < COLOUR_PROBABILITY
    drawn = Draw(
        brightness=torch.where(coloured, uniform(-0.5, 0.5), torch.zeros(())),
        saturation=torch.where(coloured, uniform(0.0, 2.0), torch.ones(())),
        contrast=torch.where(coloured, uniform(0.5, 1.5), torch.ones(())),
        shift_row=integer(-reach, reach),
        shift_column=integer(-reach, reach),
        cutout_row=integer(0, side),
        cutout_column=integer(0, side),
        flip=torch.rand(batch, generator=generator) < flip_probability,
    )
    return replace(drawn, **_neutral(drawn, side, parts))


def rows_of(drawn: Draw, rows: slice) -> Draw:
    """Return what some of the samples have drawn."""
    return Draw(**{field.name: getattr(drawn, field.name)[rows] for field in fields(Draw)})


def _neutral(drawn: Draw, side: int, parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return the values that switch off what is not among `parts`."""
    zero, one = torch.zeros_like(drawn.brightness), torch.ones_like(drawn.contrast)
    none, outside = torch.zeros_like(drawn.shift_row), torch.full_like(drawn.cutout_row, -side)
    neutral: dict[Part, dict[str, Tensor]] = {
        "colour": {"brightness": zero, "saturation": one, "contrast": one},
        "translation": {"shift_row": none, "shift_column": none},
        "cutout": {"cutout_row": outside, "cutout_column": outside},
    }
    off = [neutral[part] for part in PARTS if part not in parts]
    return {name: value for values in off for name, value in values.items()}


def augment(stages: Tensor, drawn: Draw, fill: Fill = "zero") -> Tensor:
    """Apply one draw to all stages of each sample.

    Args:
        stages: [B, K, C, H, W]; the last stage is the final image.
        drawn: a draw for B samples on a grid of H = W.
        fill: what a translation brings in: zero (DiffAugment), or the cells at the edge again. A zero latent
            is no background, and on a tiny grid a generator may learn to make the zero border itself.

    Returns:
        The same shape; differentiable in `stages`.
    """
    return _cutout(_translate(_flip(_colour(stages, drawn), drawn), drawn, fill), drawn)


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, 1, 1, 1, 1)


def _colour(x: Tensor, drawn: Draw) -> Tensor:
    """Brightness, then saturation about the channel mean, then contrast about the image mean.

    The brightness moves both means alike; saturation leaves the image mean where it is.
    """
    brightness = _each(drawn.brightness, x)
    x = x + brightness
    channel_mean = x[:, -1:].mean(dim=2, keepdim=True)
    x = (x - channel_mean) * _each(drawn.saturation, x) + channel_mean
    image_mean = x[:, -1:].mean(dim=(2, 3, 4), keepdim=True)
    return (x - image_mean) * _each(drawn.contrast, x) + image_mean


def _flip(x: Tensor, drawn: Draw) -> Tensor:
    return torch.where(drawn.flip.to(x.device).view(-1, 1, 1, 1, 1), x.flip(-1), x)


def _translate(x: Tensor, drawn: Draw, fill: Fill) -> Tensor:
    """Shift by whole cells."""
    batch, stages, channels, side, _ = x.shape
    reach = round(side * TRANSLATION)
    mode = "constant" if fill == "zero" else "replicate"
    padded = functional.pad(x.flatten(1, 2), (reach, reach, reach, reach), mode)
    cells = torch.arange(side)
    rows = (cells + reach - drawn.shift_row[:, None]).to(x.device)
    columns = (cells + reach - drawn.shift_column[:, None]).to(x.device)
    sample = torch.arange(batch, device=x.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).unflatten(1, (stages, channels))


def _cutout(x: Tensor, drawn: Draw) -> Tensor:
    """Blank a square of half the side, centred anywhere; at the border part of it falls outside."""
    side = x.shape[-1]
    half = round(side * CUTOUT) // 2
    cells = torch.arange(side)

    def inside(centre: Tensor) -> Tensor:
        return (cells >= centre[:, None] - half) & (cells < centre[:, None] + half)

    hole = inside(drawn.cutout_row)[:, :, None] & inside(drawn.cutout_column)[:, None, :]
    return x * (~hole).to(x)[:, None, None]


def resize(x: Tensor, side: int, method: Resize = "area") -> Tensor:
    """Shrink [B, C, H, W] to [B, C, side, side]; `area` is the mean over whole blocks."""
    if x.shape[-1] == side:
        return x
    if method == "area":
        return functional.avg_pool2d(x, x.shape[-1] // side)
    return functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def to_scales(stages: Tensor, scales: Sequence[int], method: Resize = "area") -> list[Tensor]:
    """Resize stage k to scale k: [B, K, C, H, W] -> K of [B, C, s_k, s_k].

    A real image has one stage, [B, 1, C, H, W], and is resized to every scale.
    """
    stages = stages.expand(-1, len(scales), -1, -1, -1)
    return [resize(stages[:, k], side, method) for k, side in enumerate(scales)]
