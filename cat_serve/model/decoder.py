"""From latents to pixels: diffusers' AutoencoderKL, and the project's one rounding rule in torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

VAE_WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def load_vae(folder: Path) -> AutoencoderKL:
    """Load a VAE folder written by diffusers (`config.json` and safetensors), in float32 and eval mode."""
    from diffusers import AutoencoderKL

    if not (folder / VAE_WEIGHTS_NAME).is_file():
        raise CheckpointError(
            f"{folder} is not a VAE folder: no {VAE_WEIGHTS_NAME} in it.",
            hint="train one with: python -m training.train_vae",
        )
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False)


def latent_affine(vae: AutoencoderKL) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std), one pair for each channel: latents = (posterior - mean) / std.

    diffusers' `scaling_factor` alone (SD-VAE) is a mean of 0 and one std of 1/scaling_factor. A VAE trained
    here measures each channel, `latents_mean` and `latents_std`, since small VAEs use theirs very unequally.
    """
    config, channels = vae.config, vae.config.latent_channels
    mean = tuple(map(float, config.latents_mean or (0.0,) * channels))
    std = tuple(s / float(config.scaling_factor) for s in config.latents_std or (1.0,) * channels)
    if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
        raise CheckpointError(
            f"The VAE has {channels} latent channels, latents_mean {mean} and latents_std / scaling_factor {std}.",
            hint="one mean and one positive standard deviation for each channel",
        )
    return mean, std


def vae_sha256(vae: AutoencoderKL) -> str:
    """Hash a VAE's weights and the scale of its latents, whatever file they came from."""
    digest = hashlib.sha256(repr(latent_affine(vae)).encode())
    for key, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Decoder(nn.Module):
    """vae.decode(latents * std + mean): latents [B, C, h, w] to images [B, 3, H, W], nominally -1..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv or nn.Identity()
        self.decoder = vae.decoder
        for name, values in zip(("mean", "std"), latent_affine(vae), strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

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
    """Round images to bytes: round(clamp((x + 1) * 127.5, 0, 255)), in float32.

    Args:
        images: [B, 3, H, W], nominally -1..1.

    Returns:
        uint8 [B, H, W, 3].
    """
    scaled = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return scaled.clamp(0, 255).round().to(torch.uint8)
