"""alpha-Flow, arXiv 2510.20771, and the MeanFlow files that github.com/snap-research/alphaflow publishes beside it.

x0 = z - u(z, t = 1, r = 0, class): SiT's network under the embeddings of t and of t - r. Around it the file holds mean and variance
of the latents at every position, posterior = x0 sqrt(var + 1e-16) + mean, and an autoencoder, which is left out: the
decoder is given with --vae.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported
from cat_serve.importers.tensors import Tensors, embedded_at
from cat_serve.model.vae import LatentAffine

WHOSE = "alpha-Flow's generator"
WEIGHTS = {"ema": "ema", "generator": "net"}
PREFIX, STATISTICS = "model.", ("autoencoder_mean", "autoencoder_var")
SIZES = {(12, 768): "b", (24, 1024): "l", (28, 1152): "xl"}
PUBLISHED: dict[
    str, float
] = {}  # alpha-Flow's and MeanFlow's files look alike: see the family's `fid`
TRAINED_ON = "the SD-VAE of its configuration"
EMBEDDERS = ("noise_labels_embedder", "noise_labels_next_embedder")
LEFT_OUT = ("autoencoder.", "are_ldm_stats_inited")
VARIANCE_EPS = 1e-16


def own_names(state: Any) -> Any:
    """Leave out the wrapper's prefix, its autoencoder and its flags."""
    if not isinstance(state, Mapping):
        return state
    kept = {str(k): v for k, v in state.items() if not str(k).startswith(LEFT_OUT)}
    return {key.removeprefix(PREFIX): tensor for key, tensor in kept.items()}


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network, t = 1 and t - r = 1 folded in, with the latents' scale at every position."""
    generator = dit_layout.build(
        tensors, options.heads, dit_layout.one_table,
        lambda width: [embedded_at(tensors, EMBEDDERS, width, 1.0)],
        skip=1.0, gain=-1.0,
    )  # fmt: skip
    mean, variance = (_statistics(tensors, name, generator.config.z_shape) for name in STATISTICS)
    std = (variance.double() + VARIANCE_EPS).sqrt().float()
    return Imported(generator, LatentAffine(mean, std), folded={"t": 1.0, "r": 0.0})


def _statistics(tensors: Tensors, name: str, latents: tuple[int, ...]) -> Tensor:
    found = tensors.take(name)
    if found.numel() not in (1, latents[0], latents[0] * latents[1] * latents[2]):
        raise tensors.refusal(f"{name} has shape {tuple(found.shape)}, its latents {latents}")
    return found.reshape((latents[0], 1, 1) if found.numel() == latents[0] else
                         (1, 1, 1) if found.numel() == 1 else latents)  # fmt: skip
