"""pixel MeanFlow, arXiv 2601.22158: the network predicts x, u = (z - net) / t; at t = h = 1 one step is x = net(z).

Pixels, no VAE; z is noise times `noise_scale`, which is training's and not in the file. Patches go through a bottleneck
(two convolutions, both with biases), every token gets a learned position, and RoPE turns image tokens alone, by row and
column. The table of rotations is a complex buffer in files that its converter wrote.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.families.references import equations as eq
from tests.families.references import mit
from tests.families.references.equations import State
from tests.families.references.mit import NET, Config

FAMILY = "pmf"


def _size(depth: int, width: int, heads: int, patch: int, bottleneck: int, noise: float) -> Config:
    return Config(
        depth, width, heads, patch, 16 * patch, 3, bottleneck=bottleneck, noise_scale=noise
    )


SIZES = {
    "B/16": _size(16, 768, 12, 16, 128, 1.0), "B/32": _size(16, 768, 12, 32, 128, 2.0),
    "L/16": _size(32, 1024, 16, 16, 128, 1.0), "L/32": _size(32, 1024, 16, 32, 128, 4.0),
    "H/16": _size(48, 1280, 16, 16, 256, 2.0), "H/32": _size(48, 1280, 16, 32, 256, 4.0),
}  # fmt: skip
GUIDANCE = {
    "B/16": (7.5, 0.1, 0.8), "L/16": (7.0, 0.2, 0.7), "H/16": (7.0, 0.2, 0.6),
    "B/32": (6.5, 0.1, 0.7), "L/32": (7.5, 0.2, 0.6), "H/32": (5.5, 0.1, 0.6),
}  # fmt: skip
TINY = Config(
    depth=4,
    width=32,
    heads=2,
    patch=8,
    side=32,
    channels=3,
    classes=10,
    head_depth=2,
    bottleneck=12,
)
T, H = 1.0, 1.0
ROTATIONS = f"{NET}rope_freqs"


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes, the complex table of rotations among them."""
    width, patch, tokens = config.width, config.patch, config.tokens_per_side**2
    return mit.layout(config, leading=(1,)) | {
        f"{NET}x_embedder.proj1.weight": (config.bottleneck, config.channels, patch, patch),
        f"{NET}x_embedder.proj1.bias": (config.bottleneck,),
        f"{NET}x_embedder.proj2.weight": (width, config.bottleneck, 1, 1),
        f"{NET}x_embedder.proj2.bias": (width,),
        f"{NET}pos_embed": (1, mit.PREFIX_TOKENS + tokens, width),
        ROTATIONS: (tokens, width // config.heads // 2),
    }


def state_dict(config: Config, seed: int) -> State:
    """Draw a state; the rotations are the real ones."""
    learned = {key: shape for key, shape in layout(config).items() if key != ROTATIONS}
    angles = _angles(config)
    return eq.filled(learned, seed) | {
        ROTATIONS: torch.complex(angles.cos(), angles.sin()).cfloat()
    }


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what torch.save wrote: the averaged weights alone."""
    return dict(averaged)


def step(
    state: State, config: Config, z: Tensor, class_id: list[int],
    omega: float = 7.0, t_min: float = 0.2, t_max: float = 0.6,
) -> Tensor:  # fmt: skip
    """Return x = z' - h u of a batch with z' = noise_scale z: images [B, 3, S, S], nominally -1..1."""
    own = mit.own_names(state)
    angles = _angles(config)

    def rotate(head: Tensor) -> Tensor:
        image = eq.rotate(head[mit.PREFIX_TOKENS :], angles)
        return torch.cat([head[: mit.PREFIX_TOKENS], image])

    samples = []
    for noise, y in zip(z, class_id, strict=True):
        x = config.noise_scale * noise
        narrow = eq.convolve(own, "x_embedder.proj1", eq.cut(x, config.patch))
        image = eq.convolve(own, "x_embedder.proj2", narrow)
        sequence = torch.cat([mit.prefix(own, y, H, omega, t_min, t_max), image])
        sequence = sequence + own["pos_embed"][0]
        net = mit.final(own, config, mit.blocks(own, config, sequence, rotate))
        u = (x - net) / T
        samples.append(x - H * u)
    return torch.stack(samples)


def _angles(config: Config) -> Tensor:
    return eq.angles_2d(config.tokens_per_side, config.width // config.heads)
