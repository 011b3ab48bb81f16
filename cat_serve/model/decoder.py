"""From latents to pixels: the decoder of a VAE, or none, and the project's one rounding rule in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model.vae import LatentAffine, latent_affine

if TYPE_CHECKING:
    from cat_serve.model.vae import Vae


class Decoder(nn.Module):
    """vae.decode(latents * std + mean): latents [B, C, h, w] to images [B, 3, H, W], nominally -1..1.

    A tiny decoder (TAESD) stands where an AutoencoderKL's would: it takes the latents as SD-VAE's were scaled.

    Args:
        affine: mean and std, which broadcast to [C, h, w]; None: the VAE's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vae: Vae, affine: LatentAffine | None = None) -> None:
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.decoder = vae.decoder
        if affine is None:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in latent_affine(vae))
            affine = LatentAffine(mean, std)
        self.register_buffer("mean", affine.mean, persistent=False)
        self.register_buffer("std", affine.std, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype
        posterior = latents.float() * self.std + self.mean
        return self.decoder(self.post_quant_conv(posterior.to(dtype)))

    def halve(self) -> None:
        """Make the weights float16; the latents' scale and what the norms compute stay float32."""
        self.post_quant_conv.half()
        self.decoder.half()
        for module in list(self.decoder.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, Float32GroupNorm(child))


class Pixels(nn.Module):
    """The decoder of a generator that makes pixels itself: [B, 3, H, W] in, the same out."""

    def forward(self, images: Tensor) -> Tensor:
        return images

    def halve(self) -> None:
        """Leave everything as it is: there are no weights."""


class Float32GroupNorm(nn.Module):
    """A group normalisation whose sums of squares cannot overflow float16; its dtype is its input's."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.groups, weight, bias, self.eps).to(x.dtype)


def to_uint8(images: Tensor) -> Tensor:
    """Return the bytes of images [B, 3, H, W], nominally -1..1: uint8 [B, H, W, 3]; see `rounded`."""
    return rounded(images).to(torch.uint8)


def rounded(images: Tensor) -> Tensor:
    """Round images to levels, still float32: round(clamp((x + 1) * 127.5, 0, 255)).

    Args:
        images: [B, 3, H, W], nominally -1..1.

    Returns:
        float32 [B, H, W, 3] of whole numbers 0..255.
    """
    scaled = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return scaled.clamp(0, 255).round()
