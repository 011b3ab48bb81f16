"""Pictures of a run: one row of samples per class, and every stage of some of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from cat_serve.files import written_whole
from cat_serve.images import grid
from cat_serve.latents import latents_from_seeds
from cat_serve.model.decoder import Decoder, to_uint8
from cat_serve.model.generator import Generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

MAX_CLASSES = 10
COLUMNS = 12


@torch.no_grad()
def sample_grids(generator: Generator, vae: AutoencoderKL) -> tuple[np.ndarray, np.ndarray]:
    """Return two uint8 pictures: samples (a row per class, a column per seed) and stages.

    In the stage picture each class has one row of seed 0: h_1 .. h_K, decoded.
    """
    config = generator.config
    classes = torch.linspace(0, config.num_classes - 1, min(config.num_classes, MAX_CLASSES)).long()
    z = torch.from_numpy(latents_from_seeds(range(COLUMNS), (config.z_dim,)))
    z, classes = z.to(generator.w_avg.device), classes.to(generator.w_avg.device)
    outputs = [
        generator(z, class_id.expand(COLUMNS), stages=True) for class_id in classes
    ]  # K stages of each sample
    decoder = Decoder(vae).to(z.device)
    samples = [to_uint8(decoder(stages[:, -1])).cpu().numpy() for stages in outputs]
    stages = [to_uint8(decoder(stages[0])).cpu().numpy() for stages in outputs]
    return grid(np.concatenate(samples), COLUMNS), grid(np.concatenate(stages), config.stages, 2)


def save_picture(path: Path, picture: np.ndarray, zoom: int = 2) -> None:
    """Write a uint8 [H, W, 3] picture as PNG, enlarged by whole pixels."""
    enlarged = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    with written_whole(path) as temporary:
        Image.fromarray(enlarged).save(temporary, format="png")


def save_previews(
    generator: Generator, vae: AutoencoderKL, folder: Path, nimg: int
) -> dict[str, np.ndarray]:
    """Write `samples-NIMG.png` and `stages-NIMG.png`; return both pictures, uint8 [H, W, 3]."""
    pictures = dict(zip(("samples", "stages"), sample_grids(generator, vae), strict=True))
    for name, picture in pictures.items():
        save_picture(folder / f"{name}-{nimg:09d}.png", picture)
    return pictures
