"""Read Fashion-MNIST: 70,000 photographs of garments, 28x28 grey, ten balanced classes.

Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv 1708.07747; MIT licence. Debian ships the four IDX
files in the package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from cat_serve.errors import DataError, MissingDependency

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PREFIX = {"train": "train", "test": "t10k"}
_UBYTE = 0x08


def load_split(
    split: Literal["train", "test"], folder: Path = DEFAULT_FOLDER
) -> tuple[np.ndarray, np.ndarray]:
    """Read one split.

    Returns:
        images uint8 [N, 28, 28] (0 is background) and labels int64 [N] in 0..9.

    Raises:
        MissingDependency: the folder has no such file.
        DataError: a file is not a whole IDX file of bytes, the two disagree on N, or a label is no class.
    """
    prefix = _PREFIX[split]
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"The {split} files of Fashion-MNIST do not belong together: "
            f"images {images.shape}, labels {labels.shape}.",
            hint="install the package again: apt-get install --reinstall dataset-fashion-mnist",
        )
    if labels.size and labels.max() >= len(CLASS_NAMES):
        raise DataError(
            f"The {split} labels of Fashion-MNIST go up to {labels.max()}, "
            f"there are {len(CLASS_NAMES)} classes."
        )
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes into a uint8 array of the shape it declares."""
    if not path.is_file():
        raise MissingDependency(
            f"Fashion-MNIST is not here: no {path.name} in {path.parent}.",
            hint="apt-get install dataset-fashion-mnist, or name the folder with --data",
        )
    try:
        raw = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path.name} is not a whole gzipped IDX file: {error}") from error
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
    if zeros != 0 or kind != _UBYTE or body.size != int(np.prod(shape)):
        raise DataError(f"{path.name} is not a whole IDX file of bytes (declared shape {shape}).")
    return body.reshape(shape)


def to_rgb32(images: np.ndarray) -> np.ndarray:
    """Pad 28x28 grey photographs with background to 32x32 and repeat grey to three channels.

    Args:
        images: uint8 [N, 28, 28].

    Returns:
        uint8 [N, 32, 32, 3].
    """
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(padded[..., None], 3, axis=-1)
