"""A data set, a VAE, prepared latents and configurations, all as small as they can be."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cat_serve.model.config import GeneratorConfig
from training import shards
from training.config import TrainConfig
from training.data import Latents
from training.discriminator import DiscriminatorConfig
from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32
from training.prepare import prepare
from training.sources import ArraySource
from training.train_vae import VaeTraining, build_vae
from training.vae import save_vae

COUNT = 24
GRID = {"latent_size": 8, "latent_channels": 8, "num_classes": 10}
SOURCE: dict[str, object] = {"dataset": "drawn", "split": "train"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every draw of a test repeatable."""
    torch.manual_seed(0)


def encode_idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Write a gzipped IDX file of unsigned bytes."""

    def write(path: Path, array: np.ndarray) -> None:
        path.write_bytes(encode_idx(array))

    return write


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files of Fashion-MNIST with 24 and 10 drawings: a bright bar, one length per class."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    random = np.random.RandomState(0)
    for prefix, count in (("train", COUNT), ("t10k", 10)):
        labels = np.arange(count) % 10
        images = random.randint(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[4 : 8 + 2 * label, 6:20] += 180
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(encode_idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(encode_idx(labels))
    return folder


@pytest.fixture(scope="session")
def photographs(idx_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [24, 32, 32, 3] and labels int64 [24]."""
    images, labels = load_split("train", idx_folder)
    return to_rgb32(images), labels


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """Write drawn images (40 x 36 px) under the names given, `CLASS/...`; a name with `/` at its end is a folder."""
    made: list[Path] = []

    def write(*names: str) -> Path:
        root = tmp_path / f"images-{len(made)}"
        root.mkdir()
        made.append(root)
        for number, name in enumerate(names):
            path = root / name
            if name.endswith("/"):
                path.mkdir(parents=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.RandomState(number).randint(0, 256, (36, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        return root

    return write


@pytest.fixture(scope="session")
def make_vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Write an untrained VAE, 32 px to 8 x 8 x 8, with the weights of a seed."""

    def make(seed: int) -> Path:
        torch.manual_seed(seed)
        vae = build_vae(VaeTraining(widths=(8, 8, 8), latent_channels=8), image_size=32)
        vae.register_to_config(
            scaling_factor=1.7,
            latents_mean=[0.5, -0.25, 0.0, 1.0] * 2,
            latents_std=[2.0, 1.0, 0.5, 3.0] * 2,
        )
        folder = tmp_path_factory.mktemp("vae") / f"vae-{seed}"
        save_vae(vae, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def vae_folder(make_vae_folder: Callable[[int], Path]) -> Path:
    return make_vae_folder(0)


@pytest.fixture(scope="session")
def prepared(
    vae_folder: Path,
    photographs: tuple[np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder of prepared latents; only to be read."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(vae_folder, ArraySource(*photographs, CLASS_NAMES, SOURCE), out)
    return out


@pytest.fixture(scope="session")
def latents(prepared: Path) -> Latents:
    return Latents(prepared)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """Make a run of two steps of 8 images; generator and discriminator differ in width."""

    def make(**changes: object) -> TrainConfig:
        config = TrainConfig(
            name="tiny",
            generator=GeneratorConfig(depth=3, width=16, heads=2, **GRID),
            discriminator=DiscriminatorConfig(depth=2, width=32, heads=2, label_dim=16, **GRID),
            total_nimg=16,
            batch_size=8,
            gamma=0.1,
        )
        return replace(config, **changes)

    return make


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut 24 photographs into shards of 10, 10 and 4."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 10)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the number of photographs of every call of the encoder."""
    calls: list[int] = []
    encode = shards.encode

    def noting(vae: object, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return encode(vae, images)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "encode", noting)
    return calls
