"""Exponential moving average of the generator, its memory counted in images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF_LIFE_NIMG = 355_000
RAMP_UP = 0.05


def ema_decay(nimg: int, batch_size: int) -> float:
    """Return the decay for one step of `batch_size` images after `nimg` images.

    The half-life is 355,000 images (a decay of 0.999 per step at batch 512), and at the beginning 5 % of
    the images seen so far.
    """
    half_life = min(HALF_LIFE_NIMG, RAMP_UP * nimg)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of `ema` toward those of `model`; copy the buffers."""
    targets: list[Tensor] = list(ema.parameters())
    sources: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for target, source in zip(ema.buffers(), model.buffers(), strict=True):
        target.copy_(source)
