"""pMF: "One-step Latent-free Image Generation with Pixel Mean Flows", arXiv 2601.22158: x = net(z' , class, guidance).

The network predicts the image and u = (z' - x) / t, so that one step from t = 1 is the network alone. z' is noise times
`noise_scale`, which is training's and not in the file. Patches go through a bottleneck of two convolutions, which are one
linear map and are folded into it; a learned table of positions belongs to every token; RoPE turns the image's alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.importers import ImportOptions
from cat_serve.importers.imf import chosen_guidance
from cat_serve.importers.imported import Imported
from cat_serve.importers.mit_layout import NET, UNUSED, Guidance, block_names, build
from cat_serve.importers.tensors import Tensors, sided

WHOSE = "pMF's generator"
WEIGHTS = {"ema": None}
SIZES = {(16, 768): "b", (32, 1024): "l", (48, 1280): "h"}
PUBLISHED = {
    "pmf-b16-256": 3.15, "pmf-l16-256": 2.51, "pmf-h16-256": 2.15,
    "pmf-b32-512": 3.63, "pmf-l32-512": 2.69, "pmf-h32-512": 2.36,
}  # fmt: skip
TRAINED_ON = "no autoencoder"
ROTATIONS = f"{NET}rope_freqs"
# of the published evaluation, by size and patch: guidance, and training's scale of the noise
RECOMMENDED = {
    ("b", 16): (Guidance(7.5, 0.1, 0.8), 1.0),
    ("l", 16): (Guidance(7.0, 0.2, 0.7), 1.0),
    ("h", 16): (Guidance(7.0, 0.2, 0.6), 2.0),
    ("b", 32): (Guidance(6.5, 0.1, 0.7), 2.0),
    ("l", 32): (Guidance(7.5, 0.2, 0.6), 4.0),
    ("h", 32): (Guidance(5.5, 0.1, 0.6), 4.0),
}


def own_names(state: Any) -> Any:
    """Leave out the complex table of rotations, which is computed here."""
    if not isinstance(state, Mapping):
        return state
    return {key: tensor for key, tensor in state.items() if key != ROTATIONS}


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network with guidance folded in.

    Raises:
        InvalidInput: it is of no published size, and guidance or noise scale is missing; or they have no meaning.
    """
    tensors.drop(*UNUSED)
    embedding = one_convolution(tensors)
    width, _, patch, _ = embedding[0].shape
    size = SIZES.get((len(block_names(tensors)), width), "")
    guidance, noise_scale = _chosen(RECOMMENDED.get((size, patch)), options, tensors)
    class_tokens = tensors.take(f"{NET}class_tokens").shape[-2]
    constant = sum(
        tensors.take(NET + name).shape[-2]
        for name in ("omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens")
    )
    tokens = tensors.shape(f"{NET}pos_embed", 3)[1] - class_tokens - constant
    generator = build(
        tensors, guidance, embedding, size=patch * sided(tokens, tensors), positions=True, rope="grid",
        z_scale=noise_scale,
    )  # fmt: skip
    return Imported(generator, None, folded=guidance.to_dict() | {"noise_scale": noise_scale})


def one_convolution(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Return weight [C, 3, p, p] and bias [C] of both patch embeddings together, multiplied in float64."""
    narrow, channels, patch, _ = tensors.shape(f"{NET}x_embedder.proj1.weight", 4)
    first = tensors.take(f"{NET}x_embedder.proj1.weight", narrow, channels, patch, patch)
    second = tensors.take(f"{NET}x_embedder.proj2.weight")
    width = second.shape[0]
    second = tensors.take(f"{NET}x_embedder.proj2.weight", width, narrow, 1, 1).flatten(1).double()
    weight = (second @ first.flatten(1).double()).reshape(width, channels, patch, patch)
    bias = torch.zeros(width, dtype=torch.float64, device=weight.device)
    for name, through in (("proj1", second), ("proj2", None)):
        key = f"{NET}x_embedder.{name}.bias"
        if key in tensors:
            own = tensors.take(key).double()
            bias = bias + (own if through is None else through @ own)
    return weight.float(), bias.float()


def _chosen(
    recommended: tuple[Guidance, float] | None, options: ImportOptions, tensors: Tensors
) -> tuple[Guidance, float]:
    given = (options.omega, options.t_min, options.t_max, options.noise_scale)
    if recommended is None and None in given:
        raise InvalidInput(
            f"{tensors.path.name} is of no published size, so nothing is known of its guidance.",
            hint="give --omega, --t-min, --t-max and --noise-scale, which is its training's",
        )
    known, scale = recommended or (Guidance(1.0, 0.0, 1.0), 1.0)
    scale = scale if options.noise_scale is None else options.noise_scale
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidInput(f"--noise-scale is {scale}.", hint="a positive number")
    return chosen_guidance(known, options), scale
