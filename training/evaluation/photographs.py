"""What samples are compared with: Fashion-MNIST, folders of images, or an npz such as ADM's reference batches."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cat_serve.errors import DataError, InvalidInput
from training.evaluation.store import digest_of

if TYPE_CHECKING:
    from cat_serve.quality.distances import Moments

MOST = 10_000  # of a folder, unless told


@dataclass(frozen=True, eq=False)
class Photographs:
    """Images uint8 [N, H, W, 3], and labels int64 [N] where they are known."""

    images: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the pixels."""
        return digest_of(self.images)


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images.

    Attributes:
        test: what samples are compared with. Unseen photographs if `held_out`; else the training ones.
        train: what the model was trained on, or a part of it; None where that is not here.
        moments: of Inception's features of the whole data set, as ADM's files carry them.
    """

    name: str
    test: Photographs
    train: Photographs | None = None
    class_names: tuple[str, ...] | None = None
    held_out: bool = True
    moments: Moments | None = None

    @property
    def labelled(self) -> bool:
        """Whether classifiers can be trained and tested on them."""
        train = self.train
        if not self.held_out or train is None:
            return False
        return train.labels is not None and self.test.labels is not None


def fashion_mnist(folder: Path) -> Reference:
    """Return both splits of Fashion-MNIST at 32 px."""
    from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32

    train, test = (
        Photographs(to_rgb32(images), labels)
        for images, labels in (load_split("train", folder), load_split("test", folder))
    )
    return Reference("Fashion-MNIST", test, train, CLASS_NAMES)


def folders(
    train: Path, test: Path | None, size_px: int, class_names: Path | None, most: int = MOST
) -> Reference:
    """Return the images of a folder, and of one with unseen images where there is one.

    A folder with sub-folders has a class in each (see `training.folder`); one that holds images alone has no labels.

    Args:
        most: how many images of each are used, evenly spread over the folder.

    Raises:
        DataError: no such folder, none that can be read, or the two have other classes.
    """
    seen, names = _read_folder(train, size_px, class_names, most)
    if test is None:
        return Reference(train.name, seen, seen, names, held_out=False)
    unseen, others = _read_folder(test, size_px, class_names, most)
    if others != names:
        raise DataError(f"{train} and {test} do not have the same classes.", hint="both need the same sub-folders")  # fmt: skip
    return Reference(train.name, unseen, seen, names)


def _read_folder(
    folder: Path, size_px: int, class_names: Path | None, most: int
) -> tuple[Photographs, tuple[str, ...] | None]:
    """Return photographs and class names; files that are no whole image are left out."""
    from tqdm import tqdm

    from training.folder import ImageFolder
    from training.images import SUFFIXES
    from training.readers import read_photograph

    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", hint="name a folder with images")
    loose = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    tree = None if loose else ImageFolder(folder, size_px, class_names)
    paths = loose if tree is None else [tree.root / name for name in tree.files or ()]
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int))
    read = [
        (index, read_photograph(paths[index], size_px).pixels)
        for index in tqdm(chosen, desc=f"read {folder.name}", unit="img")
    ]
    whole = [(index, pixels) for index, pixels in read if pixels is not None]
    if not whole:
        raise DataError(f"No image in {folder} can be read.")
    labels = None if tree is None else tree.labels[[index for index, _ in whole]].astype(np.int64)
    images = np.stack([pixels for _, pixels in whole])
    return Photographs(images, labels), None if tree is None else tree.class_names


def npz(path: Path) -> Reference:
    """Return the images of an npz as unseen photographs, and the moments in it: ADM's `VIRTUAL_imagenet256_labeled.npz`."""
    photographs, moments = read_npz(path)
    return Reference(path.name, photographs, moments=moments)


def read_npz(path: Path) -> tuple[Photographs, Moments | None]:
    """Read arr_0 uint8 [N, H, W, 3], arr_1 int64 [N] (labels; of another form they are none), mu [W] and sigma [W, W].

    Raises:
        InvalidInput: there is no such file.
        DataError: it is damaged, or there are no such images in it.
    """
    from cat_serve.quality.distances import Moments

    if not path.is_file():
        raise InvalidInput(f"There is no file {path}.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            there = {name: arrays[name] for name in ("arr_0", "arr_1", "mu", "sigma") if name in arrays}  # fmt: skip
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is no npz that can be read: {error}") from error
    images, labels = there.get("arr_0"), there.get("arr_1")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = "nothing" if images is None else f"{images.dtype} {list(images.shape)}"
        raise DataError(f"{path.name} has {got} as arr_0.", hint="images are uint8 [N, H, W, 3]")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        labels = None
    known = labels if labels is None else labels.astype(np.int64)
    moments = Moments(there["mu"].astype(float), there["sigma"].astype(float)) if {"mu", "sigma"} <= there.keys() else None  # fmt: skip
    return Photographs(images, known), moments
