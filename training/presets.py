"""The presets, and how a preset meets the data."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

from cat_serve.errors import DataError, InvalidInput
from cat_serve.model.config import GeneratorConfig, generator_preset
from training.augment import PARTS
from training.config import TrainConfig
from training.data import Index
from training.discriminator import DiscriminatorConfig
from training.representation import Representation

IMAGENET_NIMG = 1_281_167
FASHION_NIMG = 60_000

# ImageNet at 256 px: a discriminator of size B for every generator, DINOv2 as teacher; 40 epochs, H 60.
# preset          generator  epochs
_IMAGENET = {
    "cat-s2-256":  (     "S",     40),
    "cat-b2-256":  (     "B",     40),
    "cat-m2-256":  (     "M",     40),
    "cat-l2-256":  (     "L",     40),
    "cat-xl2-256": (    "XL",     40),
    "cat-h2-256":  (     "H",     60),
}  # fmt: skip


def _fashion_32() -> TrainConfig:
    grid: dict[str, Any] = {"latent_size": 8, "latent_channels": 8, "num_classes": 10}
    return TrainConfig(
        name="fashion-32",
        generator=generator_preset("nano", **grid),
        # 24 tokens: one masked attention is quicker on a CPU than one attention per scale
        discriminator=DiscriminatorConfig(
            depth=6, width=128, heads=4, label_dim=256, attention="masked", **grid
        ),
        total_nimg=1_000_000,
        batch_size=64,
        base_lr=2.5e-4,
        lr_decay_nimg=300_000,
        gamma=0.01,
        gamma_final=0.001,
        gamma_anneal_nimg=200_000,
        translation_fill="edge",
        flip_probability=0.0,  # a mirrored latent is not the latent of a mirrored image, and it leaks
        # 60,000 photographs are enough for a discriminator of this size: a million images are 17 epochs
        augmentations=("translation",),
        label_weight=0.2,
    )


# The runs of training.experiment: the method as it is published, for one CPU core. Same discriminator, same settings;
# the small one has patches of 2 (K = 3), the large one patches of 1 (K = 4, so that a_1 and a_2 inform).
# preset              patch  depth  width (generator)
_EXPERIMENT = {
    "experiment-small": (  2,     3,     64),
    "experiment-large": (  1,     4,     96),
}  # fmt: skip


def _experiment(name: str) -> TrainConfig:
    patch, depth, width = _EXPERIMENT[name]
    grid: dict[str, Any] = {"latent_size": 8, "latent_channels": 8, "num_classes": 10}
    return TrainConfig(
        name=name,
        generator=GeneratorConfig(depth=depth, width=width, heads=width // 32, patch=patch, **grid),
        discriminator=DiscriminatorConfig(
            depth=3, width=64, heads=2, label_dim=256, patch=patch, **grid
        ),
        total_nimg=153_600,
        batch_size=64,
        base_lr=2.5e-4,
        gamma=0.01,
        translation_fill="edge",
        flip_probability=0.0,
        augmentations=("translation",),
    )


def _folder() -> TrainConfig:
    """The recipe of fashion-32 for images of one's own: twice as deep, half as wide again, any grid."""
    grid: dict[str, Any] = {"latent_size": 8, "latent_channels": 4, "num_classes": 10}
    return replace(
        _fashion_32(),
        name="folder",
        augmentations=PARTS,  # folders are small
        generator=generator_preset("tiny", **grid),
        discriminator=DiscriminatorConfig(depth=6, width=192, heads=6, label_dim=256, **grid),
    )


def gamma_for(latent_size: int) -> float:
    """Return where gamma starts for a grid of `latent_size`: (side / 32)^(log 100 / log 4).

    The power law through the two grids whose gamma is known: 1.0 at 32 (the method's) and 0.01 at 8 (swept
    here). Others are read off it, not measured: 0.1 at 16.
    """
    return float((latent_size / 32) ** (math.log(100) / math.log(4)))


def train_preset(name: str) -> TrainConfig:
    """Return a preset.

    Raises:
        InvalidInput: no such preset.
    """
    if name == "fashion-32":
        return _fashion_32()
    if name == "folder":
        return _folder()
    if name in _EXPERIMENT:
        return _experiment(name)
    if name in _IMAGENET:
        size, epochs = _IMAGENET[name]
        return TrainConfig(
            name=name,
            generator=generator_preset(size),
            discriminator=DiscriminatorConfig(),
            representation=Representation("dinov2-vitb14"),
            total_nimg=epochs * IMAGENET_NIMG,
        )
    raise InvalidInput(f"No training preset {name!r}.", hint=f"presets: {', '.join(PRESETS)}")


def preset_nimg(name: str) -> int:
    """Return how many images the data set of a preset has.

    Raises:
        InvalidInput: the preset is for data of one's own.
    """
    if name == "folder":
        raise InvalidInput("The preset folder is for any data.", hint="name them with --data")
    return FASHION_NIMG if name in _OF_FASHION else IMAGENET_NIMG


_OF_FASHION = ("fashion-32", *_EXPERIMENT)  # they take no other data
PRESETS = ("fashion-32", "folder", *_EXPERIMENT, *_IMAGENET)


def preset_for_data(name: str, index: Index) -> TrainConfig:
    """Return a preset with the number of classes, the channels and the grid of prepared data.

    `fashion-32` and the `experiment-*` are for one data set and take no other. The cat presets are made for a grid of
    32, which gamma and the name of the preset belong to: classes and channels follow the data, the grid must be
    theirs. `folder` follows the data in everything, its gamma as `gamma_for` says. Whatever differs from the preset is
    printed.

    Raises:
        InvalidInput: no such preset.
        DataError: the preset does not take data of this shape.
    """
    config = train_preset(name)
    g = config.generator
    got = (len(index.class_names), index.latent_channels, index.latent_size)
    wanted = (g.num_classes, g.latent_channels, g.latent_size)
    if got == wanted:
        return config
    if name in _OF_FASHION or (name != "folder" and got[2] != wanted[2]):
        raise DataError(
            f"The data have (classes, channels, grid) {got}, {name} wants {wanted}.",
            hint="prepare the data that the preset is made for, or take --preset folder",
        )
    config = config.fitted(*got)
    if name == "folder" and got[2] != wanted[2]:
        gamma = float(f"{gamma_for(got[2]):.3g}")
        config = replace(config, gamma=gamma, gamma_final=gamma / 10)
    print(
        f"{name} follows the data: {got[0]} classes, {got[1]} channels, a grid of {got[2]}, gamma {config.gamma:g}",
        file=sys.stderr,
    )
    return config
