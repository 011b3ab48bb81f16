"""VAEs of diffusers: AutoencoderKL, and AutoencoderTiny where only its decoder is needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    Vae: TypeAlias = AutoencoderKL | AutoencoderTiny

KL, TINY = "AutoencoderKL", "AutoencoderTiny"
CONFIG_NAME = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
TRAIN_ONE = "train one with: python -m training.train_vae"
CONVERT = (
    "a .bin file is a pickle, which can run any code: convert one that you trust with "
    'AutoencoderKL.from_pretrained("FOLDER", use_safetensors=False).save_pretrained("NEW")'
)


@dataclass(frozen=True)
class LatentAffine:
    """posterior = latents * std + mean, where it is not the VAE's own: float32, broadcast to [C, h, w].

    [1, 1, 1] is one scale for all, [C, 1, 1] one for each channel, [C, h, w] one for each position.
    """

    mean: Tensor
    std: Tensor

    @property
    def kind(self) -> str:
        """Return `scalar`, `per channel` or `per position`."""
        channels, *sides = torch.broadcast_shapes(self.mean.shape, self.std.shape)
        if max(sides) > 1:
            return "per position"
        return "per channel" if channels > 1 else "scalar"


def load_vae(path: Path) -> AutoencoderKL:
    """Load diffusers' AutoencoderKL (safetensors alone), in float32 and eval mode.

    Args:
        path: a VAE's folder, a pipeline's folder with a VAE in `vae/`, or a hub name such as
            `stabilityai/sd-vae-ft-mse` whose files are in the local cache; nothing is downloaded. Weights in
            float16 (`diffusion_pytorch_model.fp16.safetensors`) are taken where there are no others.

    Raises:
        CheckpointError: no VAE is there, it is another kind of network, or its weights are a pickle or damaged.
    """
    return _load(path, (KL,), "the VAE is diffusers' AutoencoderKL, as SD-VAE is")


def load_decoder(path: Path) -> Vae:
    """Load a VAE of which only the decoder is wanted: AutoencoderKL or AutoencoderTiny; else like `load_vae`."""
    return _load(path, (KL, TINY), "decoders are diffusers' AutoencoderKL and AutoencoderTiny")


def _load(path: Path, kinds: tuple[str, ...], hint: str) -> Any:
    folder = find_vae(path)
    if (kind := _kind(folder)) not in kinds:
        raise CheckpointError(f"{folder} holds a {kind}.", hint=hint)
    try:
        vae = vae_class(kind).from_pretrained(
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


def vae_class(kind: str) -> Any:
    """Return diffusers' class of that name, one of `KL` and `TINY`.

    Raises:
        ValueError: another name.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny

    classes = {KL: AutoencoderKL, TINY: AutoencoderTiny}
    if kind not in classes:
        raise ValueError(f"no VAE is called {kind!r}")
    return classes[kind]


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


def _kind(folder: Path) -> str:
    """Return the name of the class that wrote a folder."""
    try:
        return str(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} is no diffusers configuration: {error!r}") from error  # fmt: skip


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


def upscale(vae: Vae) -> int:
    """Return how many pixels are one latent cell's side: 8 for SD-VAE and its tiny stand-in."""
    doublings = len(vae.config.block_out_channels) - 1
    return int(vae.config.get("upsampling_scaling_factor", 2) ** doublings)


def latent_affine(vae: Vae) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std), one pair for each channel: latents = (posterior - mean) / std.

    diffusers' `scaling_factor` alone (SD-VAE) is a mean of 0 and one std of 1/scaling_factor; `shift_factor`
    (SD 3, FLUX) is a mean of all channels. A VAE trained here measures each channel, `latents_mean` and
    `latents_std`, since small VAEs use theirs very unequally. A tiny decoder was made for scaled latents: 0 and 1.
    """
    config, channels = vae.config, vae.config.latent_channels
    shift = config.shift_factor or 0.0
    mean = tuple(map(float, config.get("latents_mean") or (shift,) * channels))
    stds = config.get("latents_std") or (1.0,) * channels
    std = tuple(s / float(config.scaling_factor) for s in stds)
    if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
        raise CheckpointError(
            f"The VAE has {channels} latent channels, latents_mean {mean} and latents_std / scaling_factor {std}.",
            hint="one mean and one positive standard deviation for each channel",
        )
    return mean, std


def vae_sha256(vae: Vae) -> str:
    """Hash a VAE's weights and the scale of its latents, whatever file they came from."""
    digest = hashlib.sha256(repr(latent_affine(vae)).encode())
    for key, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
