"""alpha-Flow, arXiv 2510.20771, and the MeanFlow files that github.com/snap-research/alphaflow publishes beside it.

x0 = z - u(z, t = 1, r = 0). u is SiT's network under the sum of the embeddings of t (`noise_labels_embedder`) and of t - r
(`noise_labels_next_embedder`) and of the class. The wrapper around it holds mean and variance of the latents at every
position, float64, and an autoencoder of its own: posterior = x0 sqrt(var + 1e-16) + mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "alphaflow"
SIZES = {"B/2": dit.B, "L/2": dit.L, "XL/2": dit.XL}
TINY = dit.TINY
PREFIX = "model."
EMBEDDERS = ("noise_labels_embedder", "noise_labels_next_embedder")
T, R = 1.0, 0.0


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of the network under `ema`; what the wrapper adds is in `wrapper`."""
    return {PREFIX + key: shape for key, shape in dit.layout(config, EMBEDDERS).items()}


def wrapper(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of the latents' statistics."""
    stats = (1, *config.z_shape)
    return {"autoencoder_mean": stats, "autoencoder_var": stats, "are_ldm_stats_inited": ()}


def state_dict(config: Config, seed: int) -> State:
    """Draw a state with its wrapper."""
    network = dit.drawn(dit.layout(config, EMBEDDERS), config, seed)
    rng = torch.Generator().manual_seed(seed + 7)
    stats = (1, *config.z_shape)
    return {PREFIX + key: value for key, value in network.items()} | {
        "autoencoder_mean": torch.randn(stats, generator=rng, dtype=torch.float64),
        "autoencoder_var": 20 + 5 * torch.rand(stats, generator=rng, dtype=torch.float64),
        "are_ldm_stats_inited": torch.tensor(1.0),
        "autoencoder.model.vae.decoder.conv_in.weight": torch.zeros(2, 4, 3, 3),
    }


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return a snapshot of its training, plain containers alone."""
    return {
        "net": last,
        "ema": averaged,
        "lr_scheduler": None,
        "grad_scaler": None,
        "optimizer": None,
        "cfg": {
            "model": {"dim": config.width, "num_heads": config.heads, "num_blocks": config.depth}
        },
        "stats": {"cur_step": 1_200_000},
        "dataloader": None,
    }


def step(state: State, config: Config, z: Tensor, class_id: list[int]) -> Tensor:
    """Return x0 = z - u(z, 1, 0) of a batch, normalised latents [B, C, S, S]."""
    own = {
        key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)
    }
    time = sum(
        eq.time_embedding(own, name, t) for name, t in zip(EMBEDDERS, (T, T - R), strict=True)
    )
    samples = []
    for x, y in zip(z, class_id, strict=True):
        c = time + own["y_embedder.embedding_table.weight"][y]
        samples.append(x - (T - R) * dit.network(own, config, x, [c] * config.depth, last=c))
    return dit.stacked(samples)


def posterior(state: State, latents: Tensor) -> Tensor:
    """Return what the VAE decodes: latents sqrt(var + 1e-16) + mean, position by position."""
    return latents * (state["autoencoder_var"] + 1e-16).sqrt() + state["autoencoder_mean"]
