"""From latents to pixels: diffusers' AutoencoderKL, and the project's one rounding rule in torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CONFIG_NAME = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
TRAIN_ONE = "train one with: python -m training.train_vae"
CONVERT = (
    "a .bin file is a pickle, which can run any code: convert one that you trust with "
    'AutoencoderKL.from_pretrained("FOLDER", use_safetensors=False).save_pretrained("NEW")'
)


def load_vae(path: Path) -> AutoencoderKL:
    """Load diffusers' AutoencoderKL (safetensors alone), in float32 and eval mode.

    Args:
        path: a VAE's folder, a pipeline's folder with a VAE in `vae/`, or a hub name such as
            `stabilityai/sd-vae-ft-mse` whose files are in the local cache; nothing is downloaded. Weights in
            float16 (`diffusion_pytorch_model.fp16.safetensors`) are taken where there are no others.

    Raises:
        CheckpointError: no VAE is there, it is another kind of network, or its weights are a pickle or damaged.
    """
    from diffusers import AutoencoderKL

    folder = find_vae(path)
    _require_kl(folder)
    try:
        vae = AutoencoderKL.from_pretrained(
            folder,
            variant=_variant(folder),
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:  # damaged files, or tensors that the configuration does not fit
        raise CheckpointError(f"{folder} cannot be loaded as a VAE: {error}") from error
    return vae.eval().requires_grad_(False)


def find_vae(path: Path) -> Path:
    """Return the folder that holds a VAE's `config.json`; see `load_vae`."""
    for folder in (path / "vae", path):
        if (folder / CONFIG_NAME).is_file():
            return folder
    if path.is_dir():
        raise CheckpointError(
            f"{path} is not a VAE folder: no {CONFIG_NAME} in it.", hint=TRAIN_ONE
        )
    if len(path.parts) != 2:
        raise CheckpointError(f"There is no VAE {path}.", hint=TRAIN_ONE)
    if cached := _in_cache(str(path)):
        return cached
    raise CheckpointError(
        f"There is no VAE {path} here, neither a folder nor in the local cache of the hub.",
        hint=f"nothing is downloaded here: fetch it with `hf download {path} --local-dir FOLDER`, name FOLDER",
    )


def _in_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for config in (f"vae/{CONFIG_NAME}", CONFIG_NAME):
        try:
            found = try_to_load_from_cache(name, config)
        except ValueError:  # no name that the hub would give
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _require_kl(folder: Path) -> None:
    try:
        kind = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} is no diffusers configuration: {error!r}") from error  # fmt: skip
    if kind != "AutoencoderKL":
        raise CheckpointError(
            f"{folder} holds a {kind}.", hint="the VAE is diffusers' AutoencoderKL, as SD-VAE is"
        )


def _variant(folder: Path) -> str | None:
    """Return None for the usual weights, "fp16" where those are the only ones."""
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        if (folder / f"{WEIGHTS_STEM}{middle}.safetensors").is_file():
            return variant
    pickled = any(folder.glob("*.bin"))
    raise CheckpointError(
        f"{folder} is not a VAE folder: no {WEIGHTS_STEM}.safetensors in it"
        + (", only a .bin file." if pickled else "."),
        hint=CONVERT if pickled else TRAIN_ONE,
    )


def latent_affine(vae: AutoencoderKL) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std), one pair for each channel: latents = (posterior - mean) / std.

    diffusers' `scaling_factor` alone (SD-VAE) is a mean of 0 and one std of 1/scaling_factor; `shift_factor`
    (SD 3, FLUX) is a mean of all channels. A VAE trained here measures each channel, `latents_mean` and
    `latents_std`, since small VAEs use theirs very unequally.
    """
    config, channels = vae.config, vae.config.latent_channels
    mean = tuple(map(float, config.latents_mean or (config.shift_factor or 0.0,) * channels))
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
