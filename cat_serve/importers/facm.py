"""FACM: "Flow-Anchored Consistency Models", arXiv 2507.03738, on LightningDiT-XL/1: x = z + F(z, t = 0, class).

Here t = 0 is noise and t = 1 data. RMS norms with a scale, normalised queries and keys, 2-D RoPE besides the position table,
SwiGLU. Training keeps two averages under `emas`; the second is the published one. posterior = x std + mean with the numbers of
`latents_stats.pt`; the decoder is VA-VAE's (f16d32).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.importers import ImportOptions, dit_layout
from cat_serve.importers.imported import Imported
from cat_serve.importers.pickled import as_state, read_pickled
from cat_serve.importers.tensors import Tensors
from cat_serve.model.layers import rope_angles
from cat_serve.model.vae import LatentAffine

WHOSE = "FACM's generator"
WEIGHTS = {"ema": "emas", "generator": "model"}
OTHER_NAMES = {"emas": "ema"}  # of files with the averaged weights alone
PREFIX = "ema_models.1.ema_model."
SIZES = {(28, 1152): "xl"}
PUBLISHED = {"facm-xl1-256": 1.70}
TRAINED_ON = "VA-VAE f16d32"
ROTATIONS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
TABLE_TOLERANCE = 1e-4


def own_names(state: Any) -> Any:
    """Take the second of two averages, or the only weights there are."""
    if not isinstance(state, Mapping) or not any(str(k).startswith(PREFIX) for k in state):
        return state
    return {str(k).removeprefix(PREFIX): v for k, v in state.items() if str(k).startswith(PREFIX)}


def read(tensors: Tensors, options: ImportOptions) -> Imported:
    """Return the network, t = 0 folded in.

    Raises:
        InvalidInput: there are no statistics of latents.
    """
    generator = dit_layout.build(
        tensors, options.heads, dit_layout.one_table,
        lambda width: [tensors.embedder("t_embedder", width)(0.0)],
        rope="grid", skip=1.0,
    )  # fmt: skip
    _verify_rotations(tensors, generator.config.tokens_per_side, generator.config.head_width)
    if options.latent_stats is None:
        raise InvalidInput(
            "FACM's latents are scaled by numbers that are in a file of their own.",
            hint="--latent-stats latents_stats.pt, which lies beside the weights",
        )
    affine = latent_statistics(options.latent_stats, generator.config.channels)
    return Imported(generator, affine, folded={"t": 0.0})


def latent_statistics(path: Path, channels: int) -> LatentAffine:
    """Read `mean` and `std` of every channel.

    Raises:
        CheckpointError: the file holds something else.
    """
    state = as_state(read_pickled(path), path.name)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if not {"mean", "std"} <= state.keys() or any(state[n].numel() != channels for n in ("mean", "std")):  # fmt: skip
        raise CheckpointError(
            f"{path.name} has no mean and std of {channels} channels: {shapes}.",
            hint="it is the latents_stats.pt that lies beside the weights",
        )
    mean, std = (state[name].reshape(channels, 1, 1) for name in ("mean", "std"))
    if not (std > 0).all() or not mean.isfinite().all():
        raise CheckpointError(f"{path.name} has a std that is not positive.")
    return LatentAffine(mean, std)


def _verify_rotations(tensors: Tensors, side: int, head_width: int) -> None:
    """Hold the file's tables of rotations, if there are any, to those computed here."""
    angles = rope_angles(side, head_width).repeat_interleave(2, dim=-1)
    for key, expected in zip(ROTATIONS, (angles.cos(), angles.sin()), strict=True):
        if key in tensors:
            table: Tensor = tensors.take(key, *expected.shape)
            if not table.is_meta and not torch.allclose(table, expected, rtol=0, atol=TABLE_TOLERANCE):  # fmt: skip
                raise tensors.refusal(f"its {key} is another one")
