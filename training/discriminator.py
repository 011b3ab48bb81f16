"""CAT's scale-wise discriminator: one ViT that judges every scale of an image on its own.

Patch embedding, trunk, head and label embedding are shared; each scale has its own CLS token, scale
embedding and positions. No token of one scale sees another scale, except in the control
`attention="aggregated"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.errors import InvalidInput
from cat_serve.model.config import scale_sizes, swiglu_width
from cat_serve.model.layers import (
    Attention,
    EqualizedLinear,
    RMSNorm,
    SwiGLU,
    at_least_float32,
    linear,
    patchify,
    rope_angles,
    rope_table,
    run_block,
    sincos_positions,
)

LAYER_SCALE = 0.1
ScaleAttention = Literal["scale_wise", "masked", "aggregated"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a discriminator; `label_dim` is the width of the label embedding and of the projection."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    label_dim: int = 2048
    patch: int = 2
    latent_size: int = 32
    latent_channels: int = 4
    num_classes: int = 1000
    attention: ScaleAttention = "scale_wise"

    def __post_init__(self) -> None:
        if self.attention not in ("scale_wise", "masked", "aggregated"):
            raise InvalidInput(
                f"Discriminator attention {self.attention!r} is unknown.",
                hint="scale_wise, masked (the same, as one masked attention) or aggregated",
            )

    @property
    def scales(self) -> tuple[int, ...]:
        return scale_sizes(self.latent_size, self.patch)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiscriminatorConfig:
        """Rebuild a configuration; an unknown key is an error that names it."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise InvalidInput(f"Unknown discriminator settings: {', '.join(unknown)}.")
        return cls(**values)


class Block(nn.Module):
    """u += s1 * Attn(RMSNorm(u)); u += s2 * SwiGLU(RMSNorm(u)); s1 and s2 start at 0.1 (LayerScale)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.attention_scale = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.ffn_norm = RMSNorm(width)
        self.ffn = SwiGLU(width, swiglu_width(width))
        self.ffn_scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(
        self, u: Tensor, rope: Tensor, groups: tuple[int, ...] | None, mask: Tensor | None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(u), rope, groups, mask)
        u = u + self.attention_scale * attended
        return u + self.ffn_scale * self.ffn(self.ffn_norm(u))


class LabelEmbedding(nn.Module):
    """EqLin(SiLU(EqLin(Emb_y))): the direction each class projects the CLS features on."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_classes, width) * 0.02)
        self.first = EqualizedLinear(width, width)
        self.second = EqualizedLinear(width, width)

    def forward(self, class_id: Tensor) -> Tensor:
        embedding = functional.embedding(class_id, self.embedding)
        return self.second(functional.silu(self.first(embedding)))


class Discriminator(nn.Module):
    """Judge one image per scale: logits [B, K], smallest scale first."""

    positions: Tensor
    rope: Tensor
    block_mask: Tensor
    checkpointing = False  # as in the generator

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width, scales = config.width, config.scales
        self.patch_embedding = linear(config.patch**2 * config.latent_channels, width)
        self.cls = nn.Parameter(torch.randn(len(scales), width) * 0.02)
        self.scale_embedding = nn.Parameter(torch.randn(len(scales), width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.head_norm = RMSNorm(width)
        self.head = linear(width, config.label_dim)
        self.label_embedding = LabelEmbedding(config.num_classes, config.label_dim)

        sides = [scale // config.patch for scale in scales]
        self.group_sizes = tuple(1 + side * side for side in sides)
        self.cls_index = [sum(self.group_sizes[:k]) for k in range(len(sides))]
        pairs = width // config.heads // 2
        angles = [  # an angle of zero leaves the CLS token as it is
            torch.cat([torch.zeros(1, pairs), rope_angles(side, 2 * pairs)]) for side in sides
        ]
        positions = torch.cat([sincos_positions(side, width) for side in sides])
        group_of = torch.repeat_interleave(
            torch.arange(len(sides)),
            torch.tensor(self.group_sizes),
            output_size=sum(self.group_sizes),  # the meta device cannot look
        )
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("rope", rope_table(torch.cat(angles)), persistent=False)
        self.register_buffer("block_mask", group_of[:, None] == group_of, persistent=False)

    def forward(self, images: Sequence[Tensor], class_id: Tensor) -> Tensor:
        """Return logits float32 [B, K].

        Args:
            images: K latents, [B, channels, s, s] for each scale s, smallest first.
            class_id: int64 [B].
        """
        return self.logits(self.tokens(images), class_id)

    def tokens(self, images: Sequence[Tensor]) -> Tensor:
        """Run the trunk; return the last block's tokens [B, N, C]: per scale its CLS, then its patches."""
        batch, patch = images[0].shape[0], self.config.patch
        sizes = [size - 1 for size in self.group_sizes]
        patches = self.patch_embedding(torch.cat([patchify(x, patch) for x in images], dim=1))
        patches = (patches + self.positions).split(sizes, dim=1)
        parts: list[Tensor] = []
        for k, group in enumerate(patches):
            parts += [self.cls[k].expand(batch, 1, -1), group + self.scale_embedding[k]]
        u = torch.cat(parts, dim=1)
        groups = self.group_sizes if self.config.attention == "scale_wise" else None
        mask = self.block_mask if self.config.attention == "masked" else None
        for block in self.blocks:
            u = run_block(self.checkpointing, block, u, self.rope, groups, mask)
        return u

    def logits(self, tokens: Tensor, class_id: Tensor) -> Tensor:
        """Logit_k = <Linear(RMSNorm(CLS_k)), label embedding of y>, float32 [B, K]."""
        features = self._features(tokens)
        return torch.einsum(
            "bkd,bd->bk", features, at_least_float32(self.label_embedding(class_id))
        )

    def class_logits(self, tokens: Tensor) -> Tensor:
        """Return the logits under every label, float32 [B, K, num_classes]; the one of y is `logits`'."""
        every = torch.arange(self.config.num_classes, device=tokens.device)
        return torch.einsum(
            "bkd,nd->bkn", self._features(tokens), at_least_float32(self.label_embedding(every))
        )

    def _features(self, tokens: Tensor) -> Tensor:
        return at_least_float32(self.head(self.head_norm(tokens[:, self.cls_index])))
