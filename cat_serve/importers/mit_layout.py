"""MiT's names -> this project's: the transformer of iMF and pMF, whose conditions are tokens before the image's.

Eight class tokens, four of the guidance omega (which enters as 1 - 1/omega), two each of the ends of the guidance interval, four
of the step's length h = 1: each a learned token plus the embedding of its number. Those but the classes' are constant once
guidance is chosen. Residual branches end in learned gates. Blocks are numbered in two lists, `shared_blocks` and `u_heads`;
what remains of the auxiliary head for v is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cat_serve.importers.dit_layout import filled
from cat_serve.importers.tensors import Tensors, patch_weights
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig

NET, LINEAR = "net.", "._flax_linear"
LABELS = f"{NET}y_embedder.embedding_table._flax_embedding.weight"
UNUSED = (f"{NET}v_final_layer.", f"{NET}v_heads.")
STEP = 1.0


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance omega >= 1 (1: none), within the times t_min..t_max of training's flow."""

    omega: float
    t_min: float
    t_max: float

    def to_dict(self) -> dict[str, float]:
        return {"omega": self.omega, "t_min": self.t_min, "t_max": self.t_max}


def build(
    tensors: Tensors, guidance: Guidance, embedding: tuple[Tensor, Tensor], **settings: Any
) -> OneStep:
    """Return the network with MiT's weights and its constant tokens.

    Args:
        embedding: weight [C, channels, p, p] and bias [C] of the patches as one convolution.
        settings: of `OneStepConfig`, what the tensors do not tell.
    """
    tensors.drop(*UNUSED)
    weight, bias = embedding
    width, channels, patch, _ = weight.shape
    names = block_names(tensors)
    head_width = tensors.shape(f"{names[0]}.attn.q_norm.weight", 1)[0]
    hidden = tensors.shape(f"{names[0]}.mlp.w1{LINEAR}.weight", 2)[0]
    rows, _ = tensors.shape(LABELS, 2)
    constant = constant_tokens(tensors, guidance, width)
    classes = flat(tensors.take(f"{NET}class_tokens"))
    config = OneStepConfig.from_dict({
        "width": width, "heads": width // head_width, "hidden": hidden, "patch": patch, "channels": channels,
        "num_classes": rows - 1, "order": [(index, 0) for index in range(len(names))],
        "norm": "rms", "conditioning": "gates", "ffn": "swiglu", "qk_norm": True, "bias": False,
        "class_tokens": len(classes), "constant_tokens": len(constant),
    } | settings)  # fmt: skip
    own = {
        "embed.weight": patch_weights(weight),
        "embed.bias": bias,
        "class_embedding": tensors.take(LABELS)[: rows - 1],
        "prefix": torch.cat([classes, constant]),
    }
    if config.positions:
        own |= positions(tensors, config, own.pop("prefix"))
    for index, name in enumerate(names):
        own |= {f"blocks.{index}.{k}": v for k, v in block(tensors, config, name).items()}
    return filled(config, own | head(tensors, config))


def block_names(tensors: Tensors) -> list[str]:
    """Return the blocks in the order in which they run."""
    lists = (f"{NET}shared_blocks.", f"{NET}u_heads.")
    return [f"{start}{index}" for start in lists for index in range(tensors.count(start))]


def constant_tokens(tensors: Tensors, guidance: Guidance, width: int) -> Tensor:
    """Return the tokens of omega, t_min, t_max and the step's length, [12, C]."""
    parts = (
        ("omega_tokens", "omega_embedder", 1 - 1 / guidance.omega),
        ("t_min_tokens", "cfg_t_start_embedder", guidance.t_min),
        ("t_max_tokens", "cfg_t_end_embedder", guidance.t_max),
        ("time_tokens", "h_embedder", STEP),
    )
    return torch.cat([
        flat(tensors.take(NET + tokens)) + tensors.embedder(NET + embedder, width, LINEAR)(number)
        for tokens, embedder, number in parts
    ])  # fmt: skip


def positions(tensors: Tensors, config: OneStepConfig, prefix: Tensor) -> dict[str, Tensor]:
    """Return prefix and positions: the file's table belongs to both, and is folded into the former."""
    tokens = config.prefix_tokens + config.tokens_per_side**2
    table = tensors.take(f"{NET}pos_embed", 1, tokens, config.width)[0]
    return {
        "prefix": prefix + table[: config.prefix_tokens],
        "positions": table[config.prefix_tokens :],
    }


def block(tensors: Tensors, config: OneStepConfig, name: str) -> dict[str, Tensor]:
    """Return one block under this project's names."""
    width, hidden = config.width, config.hidden

    def matrix(which: str, rows: int, columns: int) -> Tensor:
        return tensors.take(f"{name}.{which}{LINEAR}.weight", rows, columns)

    own = {
        "attention.qkv.weight": torch.cat([matrix(f"attn.{x}_proj", width, width) for x in "qkv"]),
        "attention.out.weight": matrix("attn.out_proj", width, width),
        "ffn.w12.weight": torch.cat([matrix(f"mlp.{x}", hidden, width) for x in ("w1", "w3")]),
        "ffn.w3.weight": matrix("mlp.w2", width, hidden),
        "modulation.gate1": tensors.take(f"{name}.attn_scale", width),
        "modulation.gate2": tensors.take(f"{name}.mlp_scale", width),
    }
    for norm in ("q_norm", "k_norm"):
        own[f"attention.{norm}.weight"] = tensors.take(f"{name}.attn.{norm}.weight", config.head_width)  # fmt: skip
    return own | {f"norm{i}.weight": tensors.take(f"{name}.norm{i}.weight", width) for i in (1, 2)}


def head(tensors: Tensors, config: OneStepConfig) -> dict[str, Tensor]:
    """Return the last layer under this project's names."""
    layer, values = f"{NET}u_final_layer", config.patch**2 * config.channels
    return {
        "heads.0.norm.weight": tensors.take(f"{layer}.norm.weight", config.width),
        "heads.0.project.weight": tensors.take(f"{layer}.linear{LINEAR}.weight", values, config.width),
        "heads.0.project.bias": tensors.take(f"{layer}.linear{LINEAR}.bias", values),
    }  # fmt: skip


def flat(tokens: Tensor) -> Tensor:
    """Return tokens as [P, C], whatever precedes that in the file."""
    return tokens.reshape(-1, tokens.shape[-1])
