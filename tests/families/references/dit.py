"""DiT with adaLN-Zero, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2 and figure 3.

Written from the paper; SiT keeps the network. Families add conditioning: which vector c each block sees is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.families.references import equations as eq
from tests.families.references.equations import State

MLP_RATIO = 4


@dataclass(frozen=True)
class Config:
    """Sizes of a DiT; `side` is the latent grid's."""

    depth: int
    width: int
    heads: int
    patch: int = 2
    side: int = 32
    channels: int = 4
    classes: int = 1000
    repeats: int = 1
    qk_norm: bool = False

    @property
    def tokens_per_side(self) -> int:
        return self.side // self.patch

    @property
    def z_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


XL = Config(depth=28, width=1152, heads=16)
L = Config(depth=24, width=1024, heads=16)
M = Config(depth=16, width=1024, heads=16)
B = Config(depth=12, width=768, heads=12)
TINY = Config(depth=4, width=32, heads=2, side=8, classes=10)


def embedder(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Return the keys of one time embedding."""
    return {
        f"{name}.mlp.0.weight": (width, eq.FEATURES), f"{name}.mlp.0.bias": (width,),
        f"{name}.mlp.2.weight": (width, width), f"{name}.mlp.2.bias": (width,),
    }  # fmt: skip


def layout(
    config: Config, embedders: Sequence[str], null_row: bool = True
) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of a state dict.

    Args:
        embedders: names of the time embeddings; null_row: whether the class table ends with that of no class.
    """
    width, out = config.width, config.patch**2 * config.channels
    keys: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.tokens_per_side**2, width),
        "x_embedder.proj.weight": (width, config.channels, config.patch, config.patch),
        "x_embedder.proj.bias": (width,),
    }
    for name in embedders:
        keys |= embedder(name, width)
    keys["y_embedder.embedding_table.weight"] = (config.classes + null_row, width)
    for i in range(config.depth):
        shapes: dict[str, tuple[int, ...]] = {
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (MLP_RATIO * width, width), "mlp.fc1.bias": (MLP_RATIO * width,),
            "mlp.fc2.weight": (width, MLP_RATIO * width), "mlp.fc2.bias": (width,),
            "adaLN_modulation.1.weight": (6 * width, width), "adaLN_modulation.1.bias": (6 * width,),
        }  # fmt: skip
        if config.qk_norm:
            shapes |= {f"attn.{x}_norm.scale": (width // config.heads,) for x in "qk"}
        keys |= {f"blocks.{i}.{key}": shape for key, shape in shapes.items()}
    return keys | {
        "final_layer.linear.weight": (out, width), "final_layer.linear.bias": (out,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }  # fmt: skip


def drawn(keys: dict[str, tuple[int, ...]], config: Config, seed: int) -> State:
    """Draw a state; its position table is the real one, as it is never learned."""
    state = eq.filled(keys, seed)
    table = eq.sincos_table(config.tokens_per_side, config.width)
    return state | {"pos_embed": table.float().unsqueeze(0)}


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LN(x) (1 + scale) + shift."""
    return eq.layer_norm(x) * (1 + scale) + shift


def block(state: State, config: Config, name: str, x: Tensor, c: Tensor) -> Tensor:
    """Apply one block to tokens x [N, D] under the condition c [D].

    Of the condition's projection come, in this order, shift, scale and gate of the attention, then of the MLP.
    """
    shift1, scale1, gate1, shift2, scale2, gate2 = eq.affine(
        state, f"{name}.adaLN_modulation.1", eq.silu(c)
    ).chunk(6)

    def each(head: Tensor, which: str) -> Tensor:
        scale = state.get(f"{name}.attn.{which}_norm.scale")
        return head if scale is None else eq.rms_norm(head, scale)

    q, k, v = eq.affine(state, f"{name}.attn.qkv", modulated(x, shift1, scale1)).chunk(3, dim=1)
    attended = eq.attention(q, k, v, config.heads, each)
    x = x + gate1 * eq.affine(state, f"{name}.attn.proj", attended)
    hidden = eq.gelu_tanh(eq.affine(state, f"{name}.mlp.fc1", modulated(x, shift2, scale2)))
    return x + gate2 * eq.affine(state, f"{name}.mlp.fc2", hidden)


def network(
    state: State, config: Config, z: Tensor, conditions: Sequence[Tensor], last: Tensor
) -> Tensor:
    """Return F(z) of one sample [C, S, S].

    Args:
        conditions: c of each executed block, in order; with more than `depth` the blocks begin anew.
        last: c of the final layer.
    """
    x = eq.convolve(state, "x_embedder.proj", eq.cut(z, config.patch)) + state["pos_embed"][0]
    for i, c in enumerate(conditions):
        x = block(state, config, f"blocks.{i % config.depth}", x, c)
    shift, scale = eq.affine(state, "final_layer.adaLN_modulation.1", eq.silu(last)).chunk(2)
    tokens = eq.affine(state, "final_layer.linear", modulated(x, shift, scale))
    return eq.paste(tokens, config.tokens_per_side, config.patch)


def stacked(samples: Sequence[Tensor]) -> Tensor:
    """Return samples as one batch."""
    return torch.stack(list(samples))
