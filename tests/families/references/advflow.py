"""Adversarial Flow Models, arXiv 2511.22475: x0 = G(z, y), a DiT that was trained against a discriminator.

At one step the 28-layer model has no time at all. The deep ones (section on depth repetition) run the same blocks two or
four times; round k of K sees the embedding of 1000 (1 - k/K) beside the class, the last layer the class alone.
The class table has no row for "no class". Latents are SD-VAE's times 0.18215.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "advflow"
XL_DEEP2, XL_DEEP4 = replace(dit.XL, repeats=2), replace(dit.XL, repeats=4)
SIZES = {"B/2": dit.B, "M/2": dit.M, "L/2": dit.L, "XL/2": dit.XL, "XL/2 56": XL_DEEP2, "XL/2 112": XL_DEEP4}  # fmt: skip
TINY = dit.TINY
TINY_DEEP = replace(dit.TINY, repeats=2)
TIME_SCALE = 1000
LATENT_SCALE = 1 / 0.18215


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes; a deep file has a time embedding besides."""
    return dit.layout(config, ("t_embedder",) if config.repeats > 1 else (), null_row=False)


def state_dict(config: Config, seed: int) -> State:
    """Draw a state."""
    return dit.drawn(layout(config), config, seed)


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what torch.save wrote: the averaged weights alone."""
    return dict(averaged)


def step(state: State, config: Config, z: Tensor, class_id: list[int]) -> Tensor:
    """Return x0 = G(z, y) of a batch, scaled latents [B, C, S, S]."""
    return dit.stacked([_one(state, config, x, y) for x, y in zip(z, class_id, strict=True)])


def _one(state: State, config: Config, z: Tensor, y: int) -> Tensor:
    label = state["y_embedder.embedding_table.weight"][y]
    conditions = []
    for k in range(config.repeats):
        c = label
        if config.repeats > 1:
            c = label + eq.time_embedding(
                state, "t_embedder", TIME_SCALE * (1 - k / config.repeats)
            )
        conditions += [c] * config.depth
    return dit.network(state, config, z, conditions, last=label)
