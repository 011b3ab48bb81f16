"""Decoupled MeanFlow, arXiv 2510.24474: the first blocks see t alone, the others and the last layer r alone.

One embedding serves both times; x0 = z - u(z, t = 1, r = 0). XL/2 at 256 px: 20 of 28 blocks see t. At 512 px queries
and keys are normalised, with scales called `scale`. Latents are sd-vae-ft-ema's times 0.18215.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "dmf"
SIZES = {"XL/2": dit.XL, "XL/2 512": replace(dit.XL, side=64, qk_norm=True)}
ENCODER_BLOCKS = {28: 20}
TINY = dit.TINY
TINY_ENCODER = 3
LATENT_SCALE = 1 / 0.18215
T, R = 1.0, 0.0


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes."""
    return dit.layout(config, ("t_embedder",))


def state_dict(config: Config, seed: int) -> State:
    """Draw a state."""
    return dit.drawn(layout(config), config, seed)


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what torch.save wrote: the averaged weights alone."""
    return dict(averaged)


def step(
    state: State, config: Config, z: Tensor, class_id: list[int], encoder_blocks: int | None = None
) -> Tensor:
    """Return x0 = z - u(z, 1, 0) of a batch, scaled latents [B, C, S, S]."""
    first = ENCODER_BLOCKS[config.depth] if encoder_blocks is None else encoder_blocks
    at_t, at_r = (eq.time_embedding(state, "t_embedder", time) for time in (T, R))
    samples = []
    for x, y in zip(z, class_id, strict=True):
        label = state["y_embedder.embedding_table.weight"][y]
        conditions = [label + at_t] * first + [label + at_r] * (config.depth - first)
        u = dit.network(state, config, x, conditions, last=label + at_r)
        samples.append(x - (T - R) * u)
    return dit.stacked(samples)
