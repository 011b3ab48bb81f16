"""MeanFlow, arXiv 2505.13447, in the layout of github.com/zhuyu-cs/MeanFlow: z_r = z_t - (t - r) u(z_t, r, t).

One step: x0 = z - u(z, 0, 1). u is SiT's network under the sum of two time embeddings, of t and of t - r, and the class.
Its code decodes by 2 std * latents + mean per channel, or by 1/0.18125 (another number than SD-VAE's 0.18215) since it
fine-tunes SiT: which one a file needs, it does not say.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "meanflow"
SIZES = {"B/2": dit.B, "L/2": dit.L, "XL/2": dit.XL}
TINY = dit.TINY
T, R = 1.0, 0.0
MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes under `ema`."""
    return dit.layout(config, ("t_embedder", "r_embedder"))


def state_dict(config: Config, seed: int) -> State:
    """Draw a state."""
    return dit.drawn(layout(config), config, seed)


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what its training saves, flags as a Namespace."""
    return {
        "model": last,
        "ema": averaged,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": Namespace(model="SiT-XL/2", resolution=256, num_classes=config.classes),
        "steps": 400_000,
    }


def posterior(latents: Tensor) -> Tensor:
    """Return what the VAE decodes: latents * 2 std + mean, as half of a unit is what training scaled by."""
    mean, std = (torch.tensor(values).to(latents).reshape(-1, 1, 1) for values in (MEAN, STD))
    return latents * 2 * std + mean


def step(state: State, config: Config, z: Tensor, class_id: list[int]) -> Tensor:
    """Return x0 = z - u(z, 0, 1) of a batch, latents [B, C, S, S]."""
    time = eq.time_embedding(state, "t_embedder", T) + eq.time_embedding(state, "r_embedder", T - R)
    samples = []
    for x, y in zip(z, class_id, strict=True):
        c = time + state["y_embedder.embedding_table.weight"][y]
        samples.append(x - (T - R) * dit.network(state, config, x, [c] * config.depth, last=c))
    return dit.stacked(samples)
