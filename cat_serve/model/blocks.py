"""The transformer block and the head that every generator here is made of; what differs is handed in.

A block's vectors come from `Modulated` (a linear layer on the conditioning) or from `StaticGates` (learned, the same for
all images). Their order is scale, shift, gate; DiT's files have shift before scale, and importers put their rows in order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model.layers import linear

MODULATION_GAIN = 0.1

Vectors = tuple[Tensor | None, ...]
"""scale1, shift1, gate1, scale2, shift2, gate2, each [B, 1, C] or [C]; None: there is none."""


class Modulated(nn.Module):
    """Linear(SiLU(w)), cut into `parts` vectors of the trunk's width, each [B, 1, C].

    Args:
        parts: of a block 6, or 4 without shifts (GAT); of a head 2, or 1 without a shift.
    """

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.project = linear(width, parts * width, gain=MODULATION_GAIN)

    def forward(self, w: Tensor) -> Vectors:
        vectors = self.project(functional.silu(w)).unsqueeze(1).chunk(self.parts, dim=-1)
        if self.parts == 4:
            scale1, gate1, scale2, gate2 = vectors
            return scale1, None, gate1, scale2, None, gate2
        return (*vectors, None) if self.parts == 1 else vectors


class StaticGates(nn.Module):
    """Two learned gates, [C] each: neither scale nor shift, whatever the class is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate1 = nn.Parameter(torch.ones(width))
        self.gate2 = nn.Parameter(torch.ones(width))

    def forward(self, w: Tensor | None) -> Vectors:
        return None, None, self.gate1, None, None, self.gate2


class Unmodulated(nn.Module):
    """No vectors for a head: its normalised tokens are projected as they are."""

    def forward(self, w: Tensor | None) -> Vectors:
        return None, None


def modulate(normalised: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return normalised * (1 + scale) + shift."""
    scaled = normalised if scale is None else normalised * (1 + scale)
    return scaled if shift is None else scaled + shift


class Block(nn.Module):
    """u += gate1 * Attn(norm1(u)*(1+scale1)+shift1); u += gate2 * FFN(norm2(u)*(1+scale2)+shift2).

    Args:
        norm: makes one of the two normalisations.
    """

    def __init__(
        self,
        modulation: nn.Module,
        attention: nn.Module,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.modulation = modulation
        self.attention = attention
        self.ffn = ffn

    def forward(self, u: Tensor, w: Tensor | None, rope: Tensor | None) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(w)
        u = u + gate1 * self.attention(modulate(self.norm1(u), scale1, shift1), rope)
        return u + gate2 * self.ffn(modulate(self.norm2(u), scale2, shift2))


class Head(nn.Module):
    """Linear_{C -> outputs}(norm(u)*(1+scale)+shift)."""

    def __init__(self, modulation: nn.Module, width: int, outputs: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = modulation
        self.project = linear(width, outputs)

    def forward(self, u: Tensor, w: Tensor | None) -> Tensor:
        scale, shift = self.modulation(w)
        return self.project(modulate(self.norm(u), scale, shift))
