"""Representation alignment (REPA): the discriminator's tokens predict a frozen teacher's features.

Real images and the discriminator's step only. The tokens are those after the whole trunk, of the
full-resolution group; the teacher sees the photograph moved and mirrored as the latents were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.errors import InvalidInput
from cat_serve.model.layers import linear
from training.augment import Draw, Fill
from training.discriminator import Discriminator
from training.teacher import Features, Teacher, open_teacher

PROJECTOR_WIDTH = 2048


@dataclass(frozen=True)
class Representation:
    """Options of the alignment; without a teacher there is none."""

    teacher: str = "none"
    weight: float = 1.0
    projector_width: int = PROJECTOR_WIDTH


class Projector(nn.Module):
    """Linear, SiLU, Linear, SiLU, Linear: one for CLS and patches alike (GAT's `proj`).

    Args:
        width_in: the discriminator's width.
        width_out: the teacher's width.
    """

    def __init__(self, width_in: int, width_out: int, hidden: int = PROJECTOR_WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            linear(width_in, hidden),
            nn.SiLU(),
            linear(hidden, hidden),
            nn.SiLU(),
            linear(hidden, width_out),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Project [B, 1 + N, width_in], CLS first, to [B, 1 + N, width_out]."""
        return self.layers(tokens)


def full_resolution_tokens(discriminator: Discriminator, tokens: Tensor) -> Tensor:
    """Pick the last scale's group from `Discriminator.tokens`: [B, 1 + N, C], CLS, then patches row by row."""
    return tokens[:, -discriminator.group_sizes[-1] :]


def representation_loss(projected: Tensor, features: Features) -> Tensor:
    """L = (1 - cos(p_cls, t_cls)) + mean_n (1 - cos(p_n, t_n)), 0 (aligned) to 4 (opposite).

    REPA (arXiv 2410.06940), equation 8, has the patches alone and no constant. GAT (arXiv 2509.24935) adds
    the CLS token, which weighs as much as all patches together.

    Args:
        projected: [B, 1 + N, W], CLS first, then the patches of a square grid row by row.
        features: the teacher's, resized to that grid where theirs is another.
    """
    side = math.isqrt(projected.shape[1] - 1)
    target = torch.cat([features.cls.unsqueeze(1), _patches_on(features, side)], dim=1)
    if target.shape != projected.shape:
        raise InvalidInput(
            f"Projected tokens {list(projected.shape)} do not fit features {list(target.shape)}.",
            hint="[B, 1 + side * side, the teacher's width]",
        )
    distance = 1 - functional.cosine_similarity(projected.float(), target.detach(), dim=-1)
    return distance[:, 0].mean() + distance[:, 1:].mean()


def _patches_on(features: Features, side: int) -> Tensor:
    """Resize patches [B, M, W] to [B, side * side, W]: shrink by area, grow bilinearly."""
    if features.side == side:
        return features.patches
    grid = features.patches.transpose(1, 2).unflatten(2, (features.side, features.side))
    if features.side > side:
        grid = functional.adaptive_avg_pool2d(grid, side)
    else:
        grid = functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def augment_teacher_images(
    images: Tensor, drawn: Draw, latent_side: int, fill: Fill = "zero"
) -> Tensor:
    """Mirror and move photographs as `augment` does with their latents; no colour, no cutout.

    A shift by one latent cell is one by (image side / latent side) pixels.

    Args:
        images: [B, 3, H, H] in -1..1, H a multiple of `latent_side`.
        drawn: the draw that the latents of the same B images got.
        latent_side: the side of the grid that `drawn` was made for.
        fill: what the translation brings in, as for the latents. Zero is grey: as in the latents it is about
            the mean of the data, and a teacher's normalised input is near zero there (GAT fills with
            ImageNet's mean colour).

    Returns:
        The same shape.
    """
    side = images.shape[-1]
    cell_px, rest = divmod(side, latent_side)
    if rest or not cell_px or images.shape[-2] != side:
        raise InvalidInput(
            f"Images {list(images.shape)} cannot follow shifts on a grid of {latent_side}.",
            hint="square images whose side is a multiple of the grid's",
        )
    mirrored = torch.where(drawn.flip.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
    return _moved(mirrored, drawn.shift_row * cell_px, drawn.shift_column * cell_px, fill)


def _moved(x: Tensor, shift_row: Tensor, shift_column: Tensor, fill: Fill) -> Tensor:
    """Move [B, C, H, H] down and right by int64 [B] pixels."""
    side = x.shape[-1]
    cells = torch.arange(side)
    rows, columns = ((cells - shift[:, None]).to(x.device) for shift in (shift_row, shift_column))
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    row, column = rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]
    moved = x.permute(0, 2, 3, 1)[sample, row, column].permute(0, 3, 1, 2)
    if fill == "edge":
        return moved
    row_inside, column_inside = ((at >= 0) & (at < side) for at in (rows, columns))
    inside = row_inside[:, None, :, None] & column_inside[:, None, None, :]
    return torch.where(inside, moved, torch.zeros((), dtype=x.dtype, device=x.device))


class Alignment:
    """A frozen teacher and the projector that learns to speak its language.

    Args:
        width: of the discriminator.
        options: with a teacher; `none` has no alignment.
    """

    def __init__(self, teacher: Teacher, width: int, options: Representation) -> None:
        self.teacher = teacher
        self.weight = options.weight
        self.projector = Projector(width, teacher.width, options.projector_width)

    def loss(
        self,
        discriminator: Discriminator,
        tokens: Tensor,
        photographs: Tensor,
        drawn: Draw,
        fill: Fill = "zero",
    ) -> Tensor:
        """Return the unweighted loss of real images.

        Args:
            tokens: of the real images, [B, N, C], from `Discriminator.tokens`.
            photographs: float32 [B, 3, H, H] in -1..1, and the draw that their latents got.
        """
        side = discriminator.config.latent_size
        seen = augment_teacher_images(photographs, drawn, side, fill)
        own = full_resolution_tokens(discriminator, tokens)
        return representation_loss(self.projector(own), self.teacher(seen))


def open_alignment(
    options: Representation, width: int, weights: Path | None = None, device: str = "cpu"
) -> Alignment | None:
    """Open the teacher that the options name; None if they name none."""
    teacher = open_teacher(options.teacher, weights=weights, device=device)
    return None if teacher is None else Alignment(teacher, width, options)
