"""One transformer for the one-step generators of other papers: noise and a class go in, latents or pixels come out.

At one step time and guidance are constants. What a family computes of them is folded when its weights are imported: into
tables of conditioning with a row for each class, or into tokens before the image's. The class `OneStepConfig` says which
parts a family has; here each is chosen once, when the module is made.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model.blocks import Block, Head, Modulated, StaticGates, Unmodulated
from cat_serve.model.layers import (
    Attention,
    GeluMLP,
    PlainLayerNorm,
    RMSNorm,
    SwiGLU,
    linear,
    patchify,
    rope_angles,
    rope_table,
    sequence_rope_angles,
    unpatchify,
)
from cat_serve.model.one_step_config import OneStepConfig

FFN = {"gelu": GeluMLP, "swiglu": SwiGLU}


class OneStep(nn.Module):
    """x = skip * z' + gain * F(z', class) with z' = z_scale * z; float32 at both ends.

    Buffers `tables` float32 [T, num_classes, C]: conditioning, before its SiLU. `class_embedding` float32
    [num_classes, C] is added to the class tokens; `prefix` float32 [P, C] holds those and the constant ones.
    `positions` float32 [N, C] belongs to the image's tokens. Each is there if the configuration says so.
    """

    rope: Tensor | None
    tables: Tensor
    prefix: Tensor
    class_embedding: Tensor
    positions: Tensor

    def __init__(self, config: OneStepConfig) -> None:
        super().__init__()
        self.config = config
        values = config.patch**2 * config.channels
        self.embed = linear(values, config.width)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.heads = nn.ModuleList([_head(config, values)])
        self._register_folded()
        self.register_buffer("rope", self.rotations(config), persistent=False)

    @staticmethod
    def rotations(config: OneStepConfig) -> Tensor | None:
        """Return the rotations of all tokens, [2, P + N, head width]; those before a grid are not rotated."""
        prefix, image = config.prefix_tokens, config.tokens_per_side**2
        if config.rope == "none":
            return None
        if config.rope == "sequence":
            return rope_table(sequence_rope_angles(prefix + image, config.head_width))
        angles = rope_angles(config.tokens_per_side, config.head_width)
        return rope_table(torch.cat([angles.new_zeros(prefix, angles.shape[1]), angles]))

    def _register_folded(self) -> None:
        config = self.config
        shapes: dict[str, tuple[int, ...]] = {}
        if config.tables:
            shapes["tables"] = (config.tables, config.num_classes, config.width)
        if config.prefix_tokens:
            shapes["prefix"] = (config.prefix_tokens, config.width)
        if config.class_tokens:
            shapes["class_embedding"] = (config.num_classes, config.width)
        if config.positions:
            shapes["positions"] = (config.tokens_per_side**2, config.width)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, z: Tensor, class_id: Tensor, truncation_psi: Tensor | None = None) -> Tensor:
        """Generate in one pass.

        Args:
            z: float32 [B, channels, size, size], standard normal.
            class_id: int64 [B], 0..num_classes-1.
            truncation_psi: means nothing here; the service refuses all but its neutral value.

        Returns:
            float32 [B, channels, size, size]: latents, or pixels if the model has no decoder.
        """
        config = self.config
        noise = z if config.z_scale == 1 else z * config.z_scale
        conditioning = self.conditioning(class_id)
        u = self.tokens(noise, class_id)
        for weights, table in config.order:
            u = self.blocks[weights](u, conditioning[table], self.rope)
        u = u[:, config.prefix_tokens :]
        x = self.heads[0](u, conditioning[config.head_table])
        x = unpatchify(x.to(z.dtype), config.tokens_per_side, config.patch)
        if config.gain != 1:
            x = x * config.gain
        return x if config.skip == 0 else config.skip * noise + x

    @property
    def dtype(self) -> torch.dtype:
        """What the trunk computes in."""
        return self.embed.weight.dtype

    def conditioning(self, class_id: Tensor) -> list[Tensor | None]:
        """Return each table's rows for the classes, [B, C]; [None] where blocks have static gates."""
        if not self.config.tables:
            return [None]
        rows = [functional.embedding(class_id, table) for table in self.tables.unbind(0)]
        return [row.to(self.dtype) for row in rows]

    def tokens(self, noise: Tensor, class_id: Tensor) -> Tensor:
        """Return class tokens, constant tokens and the noise's patches, [B, P + N, C]."""
        config = self.config
        image = self.embed(patchify(noise, config.patch).to(self.dtype))
        if config.positions:
            image = image + self.positions.to(self.dtype)
        if not config.prefix_tokens:
            return image
        constant = self.prefix[config.class_tokens :].expand(noise.shape[0], -1, -1)
        parts = [constant.to(self.dtype), image]
        if config.class_tokens:
            row = functional.embedding(class_id, self.class_embedding).unsqueeze(1)
            parts.insert(0, (self.prefix[: config.class_tokens] + row).to(self.dtype))
        return torch.cat(parts, dim=1)

    def halve(self) -> None:
        """Make trunk and head float16; folded tables, noise and result stay float32."""
        for part in (self.embed, self.blocks, self.heads):
            part.half()


def _block(config: OneStepConfig) -> Block:
    tables = config.conditioning == "tables"
    return Block(
        modulation=Modulated(config.width, 6) if tables else StaticGates(config.width),
        attention=Attention(config.width, config.heads, config.qk_norm, config.bias),
        ffn=FFN[config.ffn](config.width, config.hidden, config.bias),
        norm=partial(_norm, config),
    )


def _head(config: OneStepConfig, outputs: int) -> Head:
    tables = config.conditioning == "tables"
    modulation = Modulated(config.width, 2) if tables else Unmodulated()
    return Head(modulation, config.width, outputs, _norm(config))


def _norm(config: OneStepConfig) -> nn.Module:
    return PlainLayerNorm() if config.norm == "layer" else RMSNorm(config.width)
