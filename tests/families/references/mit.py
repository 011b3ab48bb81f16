"""MiT, the transformer of iMF (arXiv 2512.02012) and pMF (arXiv 2601.22158): conditions are tokens before the image.

No adaLN; residual branches end in learned gates, vectors that begin at 0. Eight class tokens, four of the guidance scale
omega (fed as 1 - 1/omega), two each of the guidance interval's ends, four of the step's length h = t - r; each is a learned
token plus the embedding of its number. After `shared_blocks` follow `u_heads`; the branch for v is not in published files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.families.references import equations as eq
from tests.families.references.equations import State

NET, LINEAR, EMBEDDING = "net.", "._flax_linear", "._flax_embedding"
CLASS_TOKENS = 8
# the learned tokens in the order of the sequence, with their number and the embedding that is added to them
CONSTANT_TOKENS = (
    ("omega_tokens", 4, "omega_embedder"),
    ("t_min_tokens", 2, "cfg_t_start_embedder"),
    ("t_max_tokens", 2, "cfg_t_end_embedder"),
    ("time_tokens", 4, "h_embedder"),
)
PREFIX_TOKENS = CLASS_TOKENS + sum(count for _, count, _ in CONSTANT_TOKENS)
Rotate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """Sizes of a MiT: `heads` of `depth` blocks belong to u; `side` is the input's, latents or pixels."""

    depth: int
    width: int
    heads: int
    patch: int = 2
    side: int = 32
    channels: int = 4
    classes: int = 1000
    head_depth: int = 8
    bottleneck: int = 0
    noise_scale: float = 1.0

    @property
    def tokens_per_side(self) -> int:
        return self.side // self.patch

    @property
    def z_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)

    @property
    def hidden(self) -> int:
        """SwiGLU's width: int(8/3 C); pMF rounds it up to a multiple of 8 where C is above 1024."""
        hidden = int(self.width * (8 / 3))
        return (hidden + 7) // 8 * 8 if self.bottleneck and self.width > 1024 else hidden


def block_layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of one block."""
    width, hidden, head = config.width, config.hidden, config.width // config.heads
    square = (width, width)
    return {
        "norm1.weight": (width,), "norm2.weight": (width,),
        **{f"attn.{name}_proj{LINEAR}.weight": square for name in ("q", "k", "v", "out")},
        "attn.q_norm.weight": (head,), "attn.k_norm.weight": (head,),
        f"mlp.w1{LINEAR}.weight": (hidden, width), f"mlp.w3{LINEAR}.weight": (hidden, width),
        f"mlp.w2{LINEAR}.weight": (width, hidden),
        "attn_scale": (width,), "mlp_scale": (width,),
    }  # fmt: skip


def block_names(config: Config) -> list[str]:
    """Return the names of the blocks in the order in which they run."""
    shared = config.depth - config.head_depth
    return [f"shared_blocks.{i}" for i in range(shared)] + [
        f"u_heads.{i}" for i in range(config.head_depth)
    ]


def layout(config: Config, leading: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of what both families have; `leading` precedes the shape of learned tokens."""
    width, out = config.width, config.patch**2 * config.channels
    keys: dict[str, tuple[int, ...]] = {}
    for tokens, count, embedder in CONSTANT_TOKENS:
        keys[tokens] = (*leading, count, width)
        keys |= {
            f"{embedder}.mlp.0{LINEAR}.weight": (width, eq.FEATURES),
            f"{embedder}.mlp.0{LINEAR}.bias": (width,),
            f"{embedder}.mlp.2{LINEAR}.weight": (width, width),
            f"{embedder}.mlp.2{LINEAR}.bias": (width,),
        }
    keys["class_tokens"] = (*leading, CLASS_TOKENS, width)
    keys[f"y_embedder.embedding_table{EMBEDDING}.weight"] = (config.classes + 1, width)
    for name in block_names(config):
        keys |= {f"{name}.{key}": shape for key, shape in block_layout(config).items()}
    keys |= {
        "u_final_layer.norm.weight": (width,),
        f"u_final_layer.linear{LINEAR}.weight": (out, width),
        f"u_final_layer.linear{LINEAR}.bias": (out,),
    }
    return {NET + key: shape for key, shape in keys.items()}


def prefix(state: State, y: int, h: float, omega: float, t_min: float, t_max: float) -> Tensor:
    """Return the condition's tokens [20, D]: class, omega, t_min, t_max, h. `state` is without `net.`."""
    numbers = (1 - 1 / omega, t_min, t_max, h)
    label = state[f"y_embedder.embedding_table{EMBEDDING}.weight"][y]
    parts = [_flat(state["class_tokens"]) + label]
    for (tokens, _, embedder), number in zip(CONSTANT_TOKENS, numbers, strict=True):
        parts.append(
            _flat(state[tokens]) + eq.time_embedding(state, embedder, number, inner=LINEAR)
        )
    return torch.cat(parts)


def blocks(state: State, config: Config, x: Tensor, rotate: Rotate) -> Tensor:
    """Run all blocks: x += gate * attention(norm(x)), x += gate * W2(silu(W1 n) W3 n)."""
    for name in block_names(config):
        x = _attend(state, config, name, x, rotate)
        n = eq.rms_norm(x, state[f"{name}.norm2.weight"])
        hidden = eq.silu(eq.affine(state, f"{name}.mlp.w1{LINEAR}", n))
        hidden = hidden * eq.affine(state, f"{name}.mlp.w3{LINEAR}", n)
        x = x + eq.affine(state, f"{name}.mlp.w2{LINEAR}", hidden) * state[f"{name}.mlp_scale"]
    return x


def final(state: State, config: Config, x: Tensor) -> Tensor:
    """Drop the prefix, normalise, project, and lay out as an image [C, S, S]."""
    image = eq.rms_norm(x[PREFIX_TOKENS:], state["u_final_layer.norm.weight"])
    tokens = eq.affine(state, f"u_final_layer.linear{LINEAR}", image)
    return eq.paste(tokens, config.tokens_per_side, config.patch)


def own_names(state: State) -> State:
    """Return the state without `net.`."""
    return {key.removeprefix(NET): value for key, value in state.items()}


def _attend(state: State, config: Config, name: str, x: Tensor, rotate: Rotate) -> Tensor:
    n = eq.rms_norm(x, state[f"{name}.norm1.weight"])
    q, k, v = (eq.affine(state, f"{name}.attn.{which}_proj{LINEAR}", n) for which in "qkv")
    attended = eq.attention(
        q, k, v, config.heads,
        lambda head, which: rotate(eq.rms_norm(head, state[f"{name}.attn.{which}_norm.weight"])),
    )  # fmt: skip
    return (
        x
        + eq.affine(state, f"{name}.attn.out_proj{LINEAR}", attended) * state[f"{name}.attn_scale"]
    )


def _flat(tokens: Tensor) -> Tensor:
    return tokens.reshape(-1, tokens.shape[-1])
