"""GAT: "Scalable GANs with Transformers", arXiv 2509.24935, as its public code writes checkpoints.

A file holds state dicts under `ema` and `generator`, and the flags of its training as an `argparse.Namespace` under `args`.
The network is this project's with four modulation vectors a block (`no_shift`); its dead patch embedding (times 0 in the
forward pass) is dropped, its position table and rotations must be the ones computed here. The file's truncation is the
other way round: psi here is 1 - psi there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import sha256_of
from cat_serve.importers import FAMILIES, ImportOptions, read_class_names
from cat_serve.importers.pickled import as_state, read_pickled
from cat_serve.model.checkpoint import Checkpoint
from cat_serve.model.config import GeneratorConfig
from cat_serve.model.generator import Generator
from cat_serve.model.layers import rope_angles, sincos_positions
from cat_serve.model.vae import load_vae, upscale, vae_sha256

SIZES = {  # of its GAT_models: depth and width
    (12, 384): "s",
    (12, 768): "b",
    (24, 1024): "l",
    (28, 1152): "xl",
}
PUBLISHED = {"gat-xl2-256": {"metric": "FID-50K", "value": 2.18, "source": "arXiv 2509.24935"}}
TABLE_TOLERANCE = 1e-4

DROPPED = ("x_embedder.proj.weight", "x_embedder.proj.bias")  # times 0 in its forward pass
_OUTSIDE = {
    "y_embedder.embedding_table.weight": "mapping.class_embedding",
    "latent_embedder.0": "mapping.first",
    "latent_embedder.2": "mapping.second",
    "w_avg": "w_avg",
}
_IN_BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.out",
    "mlp.w12": "ffn.w12",
    "mlp.w3": "ffn.w3",
    "adaLN_modulation.1": "modulation.project",
}
_IN_HEAD = {"linear": "project", "adaLN_modulation.1": "modulation.project"}


def convert(path: Path, options: ImportOptions) -> Checkpoint:
    """Return GAT's file as a checkpoint; every tensor is used, verified or on the list of dropped ones.

    Raises:
        CheckpointError: another layout, keys or shapes that do not fit, or flags that contradict the weights.
        InvalidInput: the VAE or the class names do not fit.
    """
    if options.vae is None:
        raise InvalidInput(
            "cat-serve import needs vae for GAT: the file holds no decoder.",
            hint="--vae FOLDER: it was trained on the latents of stabilityai/sd-vae-ft-mse",
        )
    content = read_pickled(path)
    if options.weights not in content:
        raise CheckpointError(
            f"{path.name} has no {options.weights!r} weights; it has {', '.join(map(repr, sorted(content))) or 'nothing'}.",
            hint="a checkpoint of GAT's train.py has 'ema' and 'generator'",
        )
    state = as_state(content[options.weights], f"{options.weights!r} in {path.name}")
    config = _config(state, path)
    args = _args(content.get("args"), path)
    _require_agreement(args, config, path)
    _verify_tables(state, config, path)
    generator = _fill(state, config, path)

    vae = load_vae(options.vae)
    if vae.config.latent_channels != config.latent_channels:
        raise InvalidInput(
            f"{options.vae} has latents of {vae.config.latent_channels} channels, the generator of {config.latent_channels}.",
            hint="GAT was trained on the latents of stabilityai/sd-vae-ft-mse",
        )
    usual = _usual_name(config, upscale(vae))
    source: dict[str, Any] = {
        "family": "GAT",
        "imported": {"file": path.name, "sha256": sha256_of(path), "weights": options.weights},
        "licence": FAMILIES["gat"].licence,
        "repository": FAMILIES["gat"].repository,
        "args": args,
        "decoder": f"{options.vae.name}, sha256 {vae_sha256(vae)}",
    }
    if usual in PUBLISHED:
        source["published"] = PUBLISHED[usual]
    if isinstance(steps := content.get("steps"), int):
        source["steps"] = steps
    return Checkpoint(
        name=options.name or usual,
        generator=generator,
        vae=vae,
        class_names=read_class_names(options.class_names, config.num_classes),
        training=source,
    )


def _config(state: dict[str, Tensor], path: Path) -> GeneratorConfig:
    """Read the network's shape off its tensors."""
    try:
        num_classes, class_dim = state["y_embedder.embedding_table.weight"].shape
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[1]
        head_dim = state["blocks.0.attn.q_norm.weight"].shape[0]
        z_dim = state["latent_embedder.0.weight"].shape[1] - class_dim
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        return GeneratorConfig(
            depth=depth,
            width=width,
            heads=width // head_dim,
            patch=patch,
            latent_size=patch * round(tokens**0.5),
            latent_channels=channels,
            num_classes=num_classes,
            z_dim=z_dim,
            class_dim=class_dim,
            modulation="no_shift",
        )
    except (KeyError, ValueError, IndexError, InvalidInput, ZeroDivisionError) as error:
        what = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path.name} is not GAT's generator: {what}.",
            hint="its models have qk_norm, SwiGLU and rotary positions; others are not read",
        ) from error


def _args(value: object, path: Path) -> dict[str, Any]:
    """Return the flags of training, plain values alone."""
    if value is None:
        return {}
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if not isinstance(value, dict):
        raise CheckpointError(f"'args' in {path.name} is a {type(value).__name__}, no flags.")
    plain = (str, int, float, bool)
    return {str(key): v for key, v in value.items() if v is None or isinstance(v, plain)}


def _require_agreement(args: dict[str, Any], config: GeneratorConfig, path: Path) -> None:
    """Hold the flags to the weights."""
    size = SIZES.get((config.depth, config.width))
    model = str(args.get("model", "")).replace("SiT-", "GAT-", 1)
    told = {
        "num_classes": (args.get("num_classes"), config.num_classes),
        "resolution": (args.get("resolution"), 8 * config.latent_size),
        "qk_norm": (args.get("qk_norm"), True),
        "model": (model or None, f"GAT-{size.upper()}/{config.patch}" if size else model),
    }
    for key, (said, found) in told.items():
        if said is not None and said != found:
            raise CheckpointError(
                f"{path.name} says {key} {said!r}, but its weights are of {found!r}.",
                hint="the file was put together from two runs, or is of another version of GAT",
            )


def _verify_tables(state: dict[str, Tensor], config: GeneratorConfig, path: Path) -> None:
    """Take the constant tables out of `state`; they must be the ones that are computed here."""
    side, head_dim = config.tokens_per_side, config.width // config.heads
    angles = rope_angles(side, head_dim).repeat_interleave(2, dim=-1)
    tables = {
        "pos_embed": sincos_positions(side, config.width).unsqueeze(0),
        "feat_rope.freqs_cos": angles.cos(),
        "feat_rope.freqs_sin": angles.sin(),
    }
    for key, expected in tables.items():
        table = state.pop(key, None)
        if table is None or table.shape != expected.shape:
            raise CheckpointError(f"{path.name} is not GAT's generator: {key} does not fit.")
        if not torch.allclose(table, expected, rtol=0, atol=TABLE_TOLERANCE):
            raise CheckpointError(
                f"{path.name} has another {key} than GAT's: it was not trained by GAT's code."
            )
    for key in DROPPED:
        state.pop(key, None)


def _fill(state: dict[str, Tensor], config: GeneratorConfig, path: Path) -> Generator:
    """Return the generator with GAT's weights under this project's names."""
    with torch.device("meta"):
        generator = Generator(config)
    own = {_own_name(key): tensor for key, tensor in state.items()}
    expected = generator.state_dict()
    if missing := sorted(expected.keys() - own.keys()):
        raise CheckpointError(f"{path.name} lacks weights: {', '.join(missing[:5])}.")
    if foreign := sorted(key for key in state if _own_name(key) not in expected):
        raise CheckpointError(
            f"{path.name} holds tensors that belong nowhere: {', '.join(foreign[:5])}."
        )
    for key, tensor in own.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{path.name}: {key} has shape {tuple(tensor.shape)}, not {tuple(expected[key].shape)}."
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path.name}: {key} is not finite.")
    generator = Generator(config)
    generator.load_state_dict(own, strict=True)
    return generator.eval().requires_grad_(False)


def _own_name(key: str) -> str:
    """Return this project's name of one of GAT's tensors; a foreign one keeps its own."""
    if key.startswith("blocks."):
        _, index, rest = key.split(".", 2)
        return f"blocks.{index}.{_renamed(rest, _IN_BLOCK)}"
    if key.startswith("final_layers."):
        _, index, rest = key.split(".", 2)
        return f"heads.{index}.{_renamed(rest, _IN_HEAD)}"
    return _renamed(key, _OUTSIDE)


def _renamed(key: str, names: dict[str, str]) -> str:
    stem, _, leaf = key.rpartition(".")
    return names.get(key) or (f"{names[stem]}.{leaf}" if stem in names else key)


def _usual_name(config: GeneratorConfig, factor: int) -> str:
    size = SIZES.get((config.depth, config.width), f"{config.depth}x{config.width}-")
    return f"gat-{size}{config.patch}-{config.latent_size * factor}"
