"""DiT's names -> this project's, for the families that keep DiT's transformer (SiT and LightningDiT among them).

In a DiT file a modulation's rows are shift, scale, gate; here scale, shift, gate. The patch embedding is a convolution there.
The position table is a buffer here, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cat_serve.importers.tensors import (
    Tensors,
    heads_of,
    patch_weights,
    scale_before_shift,
    sided,
)
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig

BLOCK_ORDER, HEAD_ORDER = (1, 0, 2, 4, 3, 5), (1, 0)
LABELS = "y_embedder.embedding_table.weight"
# The widest norms' names differ between families: `weight` in most, `scale` in DMF.
QK_NORMS = ("weight", "scale")


def one_table(depth: int) -> list[tuple[int, int]]:
    """Run every block once, all under the same conditioning."""
    return [(index, 0) for index in range(depth)]


def sizes(tensors: Tensors, heads: int | None) -> dict[str, Any]:
    """Read a DiT's sizes off its tensors, all but the number of classes and the order of blocks."""
    width, channels, patch, _ = tensors.shape("x_embedder.proj.weight", 4)
    _, tokens, _ = tensors.shape("pos_embed", 3)
    lightning = "blocks.0.mlp.w12.weight" in tensors
    hidden = tensors.shape("blocks.0.mlp.w3.weight" if lightning else "blocks.0.mlp.fc2.weight", 2)[
        1
    ]
    qk_norm = qk_norm_name(tensors)
    if qk_norm:
        head_width = tensors.shape(f"blocks.0.attn.q_norm.{qk_norm}", 1)[0]
        heads = max(1, width // head_width)
    return {
        "width": width,
        "heads": heads_of(width, heads),
        "hidden": hidden,
        "patch": patch,
        "size": patch * sided(tokens, tensors),
        "channels": channels,
        "ffn": "swiglu" if lightning else "gelu",
        "norm": "rms" if lightning else "layer",
        "qk_norm": bool(qk_norm),
    }


def qk_norm_name(tensors: Tensors) -> str | None:
    """Return how the file calls the scale of normalised queries and keys; None if they are not normalised."""
    return next((n for n in QK_NORMS if f"blocks.0.attn.q_norm.{n}" in tensors), None)


def build(
    tensors: Tensors,
    heads: int | None,
    order: Callable[[int], Sequence[tuple[int, int]]],
    times: Callable[[int], Sequence[Tensor | None]],
    null_row: bool = True,
    **settings: Any,
) -> OneStep:
    """Return the network with DiT's weights, its conditioning folded in float32.

    Args:
        order: from the number of blocks to that of weights and tables; see `OneStepConfig`.
        times: from the width to what is added to the class's embedding for each table, [width]; None: nothing.
        null_row: whether the class table ends with the row of no class, which nobody may ask for.
        settings: of `OneStepConfig`, what the tensors do not tell.
    """
    found = sizes(tensors, heads)
    rows, width = tensors.shape(LABELS, 2)
    classes = rows - 1 if null_row else rows
    depth = tensors.count("blocks.")
    own_sizes = {"num_classes": classes, "order": order(depth), "positions": True}
    config = OneStepConfig.from_dict(own_sizes | found | settings)
    labels = tensors.take(LABELS)[:classes]
    tables = [labels if time is None else labels + time for time in times(width)]
    own = trunk(tensors, config, depth) | {"tables": torch.stack(tables)}
    return filled(config, own)


def filled(config: OneStepConfig, own: dict[str, Tensor]) -> OneStep:
    """Return the module with these tensors, without copying them."""
    with torch.device("meta"):
        generator = OneStep(config)
    generator.load_state_dict(own, strict=True, assign=True)
    if not own["embed.weight"].is_meta:
        generator.rope = OneStep.rotations(config)
    return generator.eval().requires_grad_(False)


def trunk(tensors: Tensors, config: OneStepConfig, depth: int) -> dict[str, Tensor]:
    """Return patch embedding, positions, blocks and head under this project's names."""
    c, width = config, config.width
    out, tokens = c.patch**2 * c.channels, c.tokens_per_side**2
    head_rows = "final_layer.adaLN_modulation.1"
    own = {
        "embed.weight": patch_weights(
            tensors.take("x_embedder.proj.weight", width, c.channels, c.patch, c.patch)
        ),
        "embed.bias": tensors.take("x_embedder.proj.bias", width),
        "positions": tensors.take("pos_embed", 1, tokens, width)[0],
        "heads.0.project.weight": tensors.take("final_layer.linear.weight", out, width),
        "heads.0.project.bias": tensors.take("final_layer.linear.bias", out),
    }
    for leaf, shape in (("weight", (2 * width, width)), ("bias", (2 * width,))):
        rows = tensors.take(f"{head_rows}.{leaf}", *shape)
        own[f"heads.0.modulation.project.{leaf}"] = scale_before_shift(rows, HEAD_ORDER)
    if c.norm == "rms":
        own["heads.0.norm.weight"] = tensors.take("final_layer.norm_final.weight", width)
    for index in range(depth):
        own |= {f"blocks.{index}.{k}": v for k, v in block(tensors, c, f"blocks.{index}").items()}
    return own


def block(tensors: Tensors, config: OneStepConfig, name: str) -> dict[str, Tensor]:
    """Return one block under this project's names."""
    width, hidden = config.width, config.hidden
    swiglu = config.ffn == "swiglu"
    linears = {
        "attn.qkv": ("attention.qkv", 3 * width, width),
        "attn.proj": ("attention.out", width, width),
        "mlp.w12" if swiglu else "mlp.fc1": ("ffn.w12" if swiglu else "ffn.w1", (1 + swiglu) * hidden, width),
        "mlp.w3" if swiglu else "mlp.fc2": ("ffn.w3" if swiglu else "ffn.w2", width, hidden),
        "adaLN_modulation.1": ("modulation.project", 6 * width, width),
    }  # fmt: skip
    own = {}
    for theirs, (ours, rows, columns) in linears.items():
        own[f"{ours}.weight"] = tensors.take(f"{name}.{theirs}.weight", rows, columns)
        own[f"{ours}.bias"] = tensors.take(f"{name}.{theirs}.bias", rows)
    for leaf in ("weight", "bias"):
        key = f"modulation.project.{leaf}"
        own[key] = scale_before_shift(own[key], BLOCK_ORDER)
    if config.norm == "rms":
        own |= {f"norm{i}.weight": tensors.take(f"{name}.norm{i}.weight", width) for i in (1, 2)}
    if scale := qk_norm_name(tensors):
        for which in ("q_norm", "k_norm"):
            key = f"{name}.attn.{which}.{scale}"
            own[f"attention.{which}.weight"] = tensors.take(key, config.head_width)
    return own
