"""From latents to pixels: diffusers' AutoencoderKL, and the project's one rounding rule in torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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


def vae_sha256(vae: AutoencoderKL) -> str:
    """Hash a VAE's weights and scaling factor, whatever file they came from."""
    digest = hashlib.sha256(repr(float(vae.config.scaling_factor)).encode())
    for key, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Decoder(nn.Module):
    """vae.decode(latents / scaling_factor): latents [B, C, h, w] to images [B, 3, H, W], nominally -1..1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv or nn.Identity()
        self.decoder = vae.decoder
        self.inverse_scale = 1 / float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents * self.inverse_scale))


def to_uint8(images: Tensor) -> Tensor:
    """Round images to bytes: round(clamp((x + 1) * 127.5, 0, 255)), in float32.

    Args:
        images: [B, 3, H, W], nominally -1..1.

    Returns:
        uint8 [B, H, W, 3].
    """
    scaled = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return scaled.clamp(0, 255).round().to(torch.uint8)
