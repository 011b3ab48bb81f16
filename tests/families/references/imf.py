"""improved MeanFlow, arXiv 2512.02012: x0 = z - u(z, h = 1 | y, omega, t_min, t_max), in the layout of its PyTorch files.

RoPE turns every token of the sequence, prefix and image, by its place (0..275). Guidance is an input of the network:
omega = 1 is no guidance. Decoded by latents * std + mean per channel, without SD-VAE's 0.18215.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.families.references import equations as eq
from tests.families.references import mit
from tests.families.references.equations import State
from tests.families.references.mit import LINEAR, NET, Config

FAMILY = "imf"
SIZES = {
    "B/2": Config(depth=12, width=768, heads=12),
    "M/2": Config(depth=24, width=768, heads=12),
    "L/2": Config(depth=32, width=1024, heads=16),
    "XL/2": Config(depth=48, width=1024, heads=16),
}
# of each size's recommended guidance: omega, t_min, t_max
GUIDANCE = {
    "B/2": (8.0, 0.4, 0.65),
    "M/2": (10.5, 0.4, 0.6),
    "L/2": (10.5, 0.4, 0.6),
    "XL/2": (8.0, 0.42, 0.62),
}
TINY = Config(depth=4, width=32, heads=2, classes=10, head_depth=2)
MEAN = (0.86488, -0.27787343, 0.21616915, 0.3738409)
STD = (4.85503674, 5.31922414, 3.93725398, 3.9870003)
H = 1.0


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes; `v_final_layer` is there and not used."""
    width, out = config.width, config.patch**2 * config.channels
    return mit.layout(config) | {
        f"{NET}x_embedder.proj.weight": (width, config.channels, config.patch, config.patch),
        f"{NET}x_embedder.proj.bias": (width,),
        f"{NET}v_final_layer.norm.weight": (width,),
        f"{NET}v_final_layer.linear{LINEAR}.weight": (out, width),
        f"{NET}v_final_layer.linear{LINEAR}.bias": (out,),
    }


def state_dict(config: Config, seed: int) -> State:
    """Draw a state."""
    return eq.filled(layout(config), seed)


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what torch.save wrote: the averaged weights alone."""
    return dict(averaged)


def step(
    state: State, config: Config, z: Tensor, class_id: list[int],
    omega: float = 8.0, t_min: float = 0.42, t_max: float = 0.62,
) -> Tensor:  # fmt: skip
    """Return x0 = z - h u of a batch, normalised latents [B, C, S, S]."""
    own = mit.own_names(state)
    angles = eq.angles_1d(
        mit.PREFIX_TOKENS + config.tokens_per_side**2, config.width // config.heads
    )
    samples = []
    for x, y in zip(z, class_id, strict=True):
        image = eq.convolve(own, "x_embedder.proj", eq.cut(x, config.patch))
        sequence = torch.cat([mit.prefix(own, y, H, omega, t_min, t_max), image])
        tokens = mit.blocks(own, config, sequence, lambda head: eq.rotate(head, angles))
        samples.append(x - H * mit.final(own, config, tokens))
    return torch.stack(samples)


def posterior(latents: Tensor) -> Tensor:
    """Return what the VAE decodes: latents * std + mean, channel by channel."""
    mean, std = (torch.tensor(values).to(latents).reshape(-1, 1, 1) for values in (MEAN, STD))
    return latents * std + mean
