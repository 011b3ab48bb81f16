"""Measure a VAE, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL
    from torch import Tensor


MEASURE_BATCH = 250
BATCH_PX = 2**20  # pixels that go through a VAE at a time: 16 photographs of 256 px


def batch_size_for(size_px: int, most: int) -> int:
    """Return how many photographs of a side fit into one batch: at least 1, `most` at most."""
    return max(1, min(most, BATCH_PX // size_px**2))


def to_unit(images: np.ndarray) -> Tensor:
    """Map uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def measure_latents(
    vae: AutoencoderKL, images: np.ndarray, batch_size: int | None = None
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every channel of sampled latents."""
    import torch
    from tqdm import tqdm

    batch_size = batch_size or batch_size_for(images.shape[1], MEASURE_BATCH)
    generator = torch.Generator().manual_seed(0)
    parts = []
    with torch.no_grad():
        for start in tqdm(range(0, len(images), batch_size), desc="latents", unit="batch"):
            x = to_unit(images[start : start + batch_size])
            parts.append(vae.encode(x).latent_dist.sample(generator))
    std, mean = torch.std_mean(torch.cat(parts).double(), dim=(0, 2, 3), correction=0)
    return mean.tolist(), std.tolist()


def reconstruct(
    vae: AutoencoderKL, images: np.ndarray, batch_size: int | None = None, quiet: bool = False
) -> np.ndarray:
    """Encode uint8 [N, H, W, 3] to the posterior's mean and decode again, to uint8; `quiet` shows no progress."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from cat_serve.model.decoder import to_uint8

    batch_size = batch_size or batch_size_for(images.shape[1], MEASURE_BATCH)
    parts = []
    with torch.no_grad():
        starts = range(0, len(images), batch_size)
        for start in tqdm(starts, desc="reconstruct", unit="batch", disable=quiet):
            posterior = vae.encode(to_unit(images[start : start + batch_size])).latent_dist
            parts.append(to_uint8(vae.decode(posterior.mode()).sample).numpy())
    return np.concatenate(parts)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Return the PSNR of two sets of uint8 images, over all pixels."""
    import numpy as np

    return float(10 * np.log10(255**2 / np.square(a.astype(np.float32) - b).mean(dtype=np.float64)))


def save_vae(vae: AutoencoderKL, out: Path) -> None:
    """Write diffusers' folder (config.json and safetensors) beside its final name, then rename it."""
    import shutil

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    vae.save_pretrained(temporary)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)
