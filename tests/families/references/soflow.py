"""SoFlow, arXiv 2512.15657: f(x, t, s) = a(t, s) x + b(t, s) F(x, t, s) with a = 1 and b = s - t ("Euler").

One step goes from t = 1 to s = 0: x0 = z - F(z, 1, 0). F is a DiT whose condition is the sum of the embedding of t, a
second embedding fed t - s, and the class (with a row for no class, which guidance in training used). No factor of 1000.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "soflow"
SIZES = {"B/2": dit.B, "M/2": dit.M, "L/2": dit.L, "XL/2": dit.XL}
TINY = dit.TINY
LATENT_SCALE = 1 / 0.18215
PREFIX = "network."
T, S = 1.0, 0.0


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes under `ema_model`."""
    keys = dit.layout(config, ("t_embedder", "s_embedder"))
    return {PREFIX + key: shape for key, shape in keys.items()}


def state_dict(config: Config, seed: int) -> State:
    """Draw a state."""
    state = dit.drawn(dit.layout(config, ("t_embedder", "s_embedder")), config, seed)
    return {PREFIX + key: value for key, value in state.items()}


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what its training saves: both sets of weights, the optimizer and the step."""
    return {
        "model": last,
        "ema_model": averaged,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "steps": 1_200_000,
    }


def step(state: State, config: Config, z: Tensor, class_id: list[int]) -> Tensor:
    """Return x0 = a z + b F of a batch, scaled latents [B, C, S, S]."""
    a, b = 1.0, S - T
    own = {key.removeprefix(PREFIX): value for key, value in state.items()}
    time = eq.time_embedding(own, "t_embedder", T) + eq.time_embedding(own, "s_embedder", T - S)
    samples = []
    for x, y in zip(z, class_id, strict=True):
        c = time + own["y_embedder.embedding_table.weight"][y]
        samples.append(a * x + b * dit.network(own, config, x, [c] * config.depth, last=c))
    return dit.stacked(samples)
