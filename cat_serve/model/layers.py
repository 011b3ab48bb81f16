"""Layers shared by generator and discriminator.

Normalisations compute in float32 and return the input's dtype, so that a halved module stays finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """Divide by the root mean square over the last dimension: x / sqrt(mean(x^2) + eps)."""
    wide = at_least_float32(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalisation with a learned scale over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight


class PlainRMSNorm(nn.Module):
    """RMS normalisation without a scale; it holds no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


class PlainLayerNorm(nn.Module):
    """Layer normalisation without scale and shift, eps 1e-6, computed in float32; it holds no weights."""

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return functional.layer_norm(wide, x.shape[-1:], eps=NORM_EPS).to(x.dtype)


class EqualizedLinear(nn.Module):
    """A linear layer that learns at a hundredth of the learning rate (GAT's mapping network).

    Effective weight 0.01 * W and bias 0.01 * b, with W Xavier-uniform of gain 100 and b = 0, so that the
    effective weight starts as plain Xavier-uniform.
    """

    lr_multiplier = 0.01

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.xavier_uniform_(self.weight, gain=1 / self.lr_multiplier)

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and bias [out] that the layer multiplies with."""
        return self.weight * self.lr_multiplier, self.bias * self.lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, *self.effective())


def linear(in_features: int, out_features: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """Make a linear layer with Xavier-uniform weight and zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def sincos_positions(side: int, width: int) -> Tensor:
    """Return the fixed 2-D sin-cos embedding of a side x side grid, row by row.

    The first half of the channels encodes the column, the second the row; each half is sines, then
    cosines, of position / 10000^(i / (width/4)) (the convention of MAE and DiT).

    Returns:
        float32 [side^2, width].
    """
    omega = ROPE_BASE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width/2]
    column = axis[None, :, :].expand(side, side, -1)
    row = axis[:, None, :].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).reshape(side * side, width).float()


def rope_angles(side: int, head_dim: int) -> Tensor:
    """Return the rotation angles of 2-D RoPE on a side x side grid, one per adjacent pair of channels.

    The first half of a head rotates by row, the second by column; integer positions, base 10000.

    Returns:
        float32 [side^2, head_dim/2].
    """
    pairs = head_dim // 4
    omega = ROPE_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    row = angle[:, None, :].expand(side, side, -1)
    column = angle[None, :, :].expand(side, side, -1)
    return torch.cat([row, column], dim=-1).reshape(side * side, 2 * pairs).float()


def sequence_rope_angles(length: int, head_dim: int) -> Tensor:
    """Return the rotation angles of 1-D RoPE over `length` tokens: float32 [length, head_dim/2]; base 10000."""
    pairs = head_dim // 2
    omega = ROPE_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return (torch.arange(length, dtype=torch.float64)[:, None] * omega).float()


def rope_table(angles: Tensor) -> Tensor:
    """Turn angles [N, head_dim/2] into the table [2, N, head_dim] of cosines and signed sines."""
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = angles.sin().repeat_interleave(2, dim=-1)
    sign = torch.tensor([-1.0, 1.0]).repeat(angles.shape[-1])
    return torch.stack([cos, sin * sign])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs: (a, b) -> (a cos - b sin, a sin + b cos).

    Args:
        x: [..., N, head_dim].
        table: [2, N, head_dim], from `rope_table`.
    """
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    table = table.to(x.dtype)
    return x * table[0] + swapped * table[1]


class Attention(nn.Module):
    """Multi-head self-attention, by default with RMS-normalised queries and keys and biases."""

    def __init__(self, width: int, heads: int, qk_norm: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width, bias=bias)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out = linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None,
        groups: tuple[int, ...] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend within each group of consecutive tokens.

        Args:
            x: [B, N, C].
            rope: [2, N, C/heads], or None for no rotary positions.
            groups: lengths that sum to N, or None for one group of all tokens.
            mask: bool [N, N], True where a query may see a key.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if groups is None:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            parts = zip(q.split(groups, 2), k.split(groups, 2), v.split(groups, 2), strict=True)
            y = torch.cat([functional.scaled_dot_product_attention(*part) for part in parts], dim=2)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """W3(SiLU(W1 x) * W2 x), by default with biases; W1 and W2 are one matrix."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.w12 = linear(width, 2 * hidden, bias=bias)
        for half in self.w12.weight.data.chunk(2):  # each half is a layer of its own
            bound = math.sqrt(6 / (width + hidden))
            nn.init.uniform_(half, -bound, bound)
        self.w3 = linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class GeluMLP(nn.Module):
    """W2(GELU(W1 x)) with GELU's tanh form, as DiT has it."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.w1 = linear(width, hidden, bias=bias)
        self.w2 = linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.gelu(self.w1(x), approximate="tanh"))


def run_block(checkpointing: bool, block: nn.Module, *inputs: Any) -> Tensor:
    """Run a block; with `checkpointing` its activations are computed again in the backward pass."""
    if not (checkpointing and torch.is_grad_enabled()):
        return block(*inputs)
    # Nothing in a block is random: there is no state of random numbers to put back.
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def unpatchify(tokens: Tensor, side: int, patch: int) -> Tensor:
    """Lay tokens [B, side^2, patch*patch*C] out as a grid [B, C, side*patch, side*patch]."""
    grid = tokens.unflatten(1, (side, side)).unflatten(-1, (patch, patch, -1))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def patchify(grid: Tensor, patch: int) -> Tensor:
    """Cut a grid [B, C, H, W] into tokens [B, H*W/patch^2, patch*patch*C], row by row."""
    blocks = grid.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
