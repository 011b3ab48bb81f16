"""CAT's generator: a latent and a class go in, a latent image comes out of one forward pass.

"Cross-scale Aligned Supervision for Training GANs", arXiv 2605.26449, on the architecture of "Scalable
GANs with Transformers" (GAT), arXiv 2509.24935. No noise image enters: the tokens are a fixed position
embedding, and everything that differs between samples comes through the modulation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model import blocks
from cat_serve.model.blocks import Modulated
from cat_serve.model.config import GeneratorConfig, Modulation, swiglu_width
from cat_serve.model.layers import (
    Attention,
    EqualizedLinear,
    PlainRMSNorm,
    SwiGLU,
    at_least_float32,
    rms_norm,
    rope_angles,
    rope_table,
    run_block,
    sincos_positions,
    unpatchify,
)

MAPPING_EPS = 1e-8
MAPPING_SCALE = 128.0
W_AVG_DECAY = 0.995


def tiny_eps_rms_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean(x^2) + 1e-8), float32, written so that the 1e-8 survives the export to ONNX.

    The exporter's optimiser takes a constant of 1e-8 for 0 and drops the sum, and z = 0 would give NaN. Scaling
    by a power of two is exact: these are the bits of the plain formula.
    """
    return rms_norm(x * MAPPING_SCALE, MAPPING_EPS * MAPPING_SCALE**2)


class Mapping(nn.Module):
    """(z, y) -> w = EqLin(SiLU(EqLin([e_y / rms(e_y), z / rms(z)]))), always in float32."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(
            torch.randn(config.num_classes, config.class_dim) * 0.02
        )
        self.first = EqualizedLinear(config.class_dim + config.z_dim, config.width)
        self.second = EqualizedLinear(config.width, config.width)

    def forward(self, z: Tensor, class_id: Tensor) -> Tensor:
        """Map z float32 [B, z_dim] and class_id int64 [B] to w float32 [B, C]."""
        return self.from_embedding(z, functional.embedding(class_id, self.class_embedding))

    def from_embedding(self, z: Tensor, embedding: Tensor) -> Tensor:
        """Map z float32 [B, z_dim] and a class embedding e_y float32 [B, class_dim] to w float32 [B, C]."""
        normalised = (tiny_eps_rms_norm(embedding), tiny_eps_rms_norm(at_least_float32(z)))
        return self.second(functional.silu(self.first(torch.cat(normalised, dim=-1))))


class Block(blocks.Block):
    """A block with rms norms without a scale and SwiGLU; six vectors, or four as in GAT: no shifts."""

    def __init__(self, width: int, heads: int, modulation: Modulation) -> None:
        super().__init__(
            modulation=Modulated(width, 6 if modulation == "shift" else 4),
            attention=Attention(width, heads),
            ffn=SwiGLU(width, swiglu_width(width)),
            norm=PlainRMSNorm,
        )


class Head(blocks.Head):
    """Linear_{C -> p*p*channels}(rms(u)*(1+scale)+shift); GAT's heads have the scale alone."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(
            modulation=Modulated(config.width, 2 if config.modulation == "shift" else 1),
            width=config.width,
            outputs=config.patch**2 * config.latent_channels,
            norm=PlainRMSNorm(),
        )


def truncate_toward(center: Tensor, w: Tensor, truncation_psi: Tensor) -> Tensor:
    """Return (1 - psi) * center + psi * w; center and w [B, C], psi [B]; exact at psi = 0 and 1."""
    psi = truncation_psi.unsqueeze(-1)
    return (1 - psi) * center + psi * w


class Generator(nn.Module):
    """The whole generator, with the per-class running mean of w that truncation aims at."""

    w_avg: Tensor
    positions: Tensor
    rope: Tensor
    checkpointing = (
        False  # in training: keep a block's input alone, and compute the rest of it again
    )

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.modulation) for _ in range(config.depth)
        )
        self.heads = nn.ModuleList(Head(config) for _ in range(config.stages))
        self.register_buffer("w_avg", torch.zeros(config.num_classes, config.width))
        side = config.tokens_per_side
        angles = rope_angles(side, config.width // config.heads)
        self.register_buffer("positions", sincos_positions(side, config.width), persistent=False)
        self.register_buffer("rope", rope_table(angles), persistent=False)

    def forward(
        self,
        z: Tensor,
        class_id: Tensor,
        truncation_psi: Tensor | None = None,
        stages: bool = False,
    ) -> Tensor:
        """Generate latents in one pass.

        Args:
            z: float32 [B, z_dim], standard normal.
            class_id: int64 [B], 0..num_classes-1.
            truncation_psi: float32 [B] in 0..1 (1 off, 0 the class mean), or None for off.
            stages: return every stage's output instead of the last alone.

        Returns:
            h_K, [B, channels, grid, grid], or all of h_1..h_K, [B, K, channels, grid, grid].
        """
        w = self.mapping(z, class_id)
        if truncation_psi is not None:
            w = self.truncate(w, class_id, truncation_psi)
        outputs = self.synthesis(w)
        return torch.stack(outputs, dim=1) if stages else outputs[-1]

    def truncate(self, w: Tensor, class_id: Tensor, truncation_psi: Tensor) -> Tensor:
        """Move w toward its class mean: (1 - psi) * w_avg[y] + psi * w; exact at psi = 0 and 1."""
        return truncate_toward(functional.embedding(class_id, self.w_avg), w, truncation_psi)

    def mix(
        self, z: Tensor, class_id: Tensor, class_weight: Tensor, truncation_psi: Tensor
    ) -> Tensor:
        """Return w of a mixture: the weighted mean of class embeddings, truncated toward that of `w_avg`.

        Args:
            z: float32 [B, z_dim].
            class_id: int64 [B, S], 0..num_classes-1.
            class_weight: float32 [B, S], >= 0, not all 0 in a row.
            truncation_psi: float32 [B].

        Returns:
            float32 [B, C]; with one weight 1 and the others 0 exactly what `forward` uses for that class.
        """
        share = (class_weight / class_weight.sum(-1, keepdim=True)).unsqueeze(-1)
        embedding = (share * functional.embedding(class_id, self.mapping.class_embedding)).sum(1)
        w_avg = (share * functional.embedding(class_id, self.w_avg)).sum(1)
        return truncate_toward(w_avg, self.mapping.from_embedding(z, embedding), truncation_psi)

    def synthesis(self, w: Tensor) -> list[Tensor]:
        """Run the trunk on w [B, C]; return h_1..h_K, where h_k = h_{k-1} + unpatchify(head_k(u))."""
        config = self.config
        w = w.to(next(self.blocks.parameters()).dtype)  # half trunk, float32 mapping
        u = self.positions.to(w.dtype).expand(w.shape[0], -1, -1)
        blocks_per_stage = config.depth // config.stages
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks, start=1):
            u = run_block(self.checkpointing, block, u, w, self.rope)
            if index % blocks_per_stage == 0:
                tokens = self.heads[len(outputs)](u, w)
                h = unpatchify(tokens.to(u.dtype), config.tokens_per_side, config.patch)
                outputs.append(outputs[-1] + h if outputs else h)
        return outputs

    def halve(self) -> None:
        """Make blocks and heads float16; the mapping network and `w_avg` stay float32."""
        self.blocks.half()
        self.heads.half()

    @torch.no_grad()
    def update_w_avg(self, w: Tensor, class_id: Tensor) -> None:
        """For each class in the batch: w_avg <- 0.995 w_avg + 0.005 mean(w)."""
        classes, inverse, counts = class_id.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(classes), w.shape[1], dtype=self.w_avg.dtype)
        sums = sums.to(w.device).index_add_(0, inverse, w.detach().to(self.w_avg))
        self.w_avg[classes] = torch.lerp(
            self.w_avg[classes], sums / counts.unsqueeze(1), 1 - W_AVG_DECAY
        )
