"""The photographs behind prepared latents, for a teacher to look at."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from cat_serve.errors import DataError
from training.data import PREPARE_AGAIN, Latents
from training.fashion_mnist import DEFAULT_FOLDER, load_split, to_rgb32
from training.images import decode
from training.listing import LAYOUT, Listed
from training.readers import Readable, default_workers
from training.shards import FILES_NAME
from training.vae import to_unit

NAME_FOLDER = "name the folder they were prepared from with --photographs"


class Photographs(Protocol):
    """Photograph i is the one that latent i was encoded from."""

    def batch(self, indices: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] in -1..1 for int64 indices [B]."""
        ...


def open_photographs(data: Latents, folder: Path | None = None) -> Photographs:
    """Open the photographs of prepared data again.

    Args:
        folder: where they are; by default where they were, or where their package puts them.

    Raises:
        DataError: the index names photographs that cannot be opened, or those in the folder are others.
    """
    source = data.index.images
    kind = (source.get("dataset"), source.get("layout"))
    if kind == ("fashion-mnist", "to_rgb32"):
        return FashionPhotographs(data, folder or DEFAULT_FOLDER)
    if kind in (("folder", LAYOUT), ("tars", LAYOUT)):
        return FolderPhotographs(data, folder or Path(source["root"]))
    raise DataError(
        f"The photographs of {source.get('dataset')!r} cannot be opened again.",
        hint="a teacher needs them: train with --teacher none, or prepare the data again",
    )


class FashionPhotographs:
    """Those of Fashion-MNIST: bytes in memory, padded batch by batch."""

    def __init__(self, data: Latents, folder: Path) -> None:
        self._images, labels = load_split(data.index.images["split"], folder)
        if not np.array_equal(labels, data.labels.numpy()):
            raise DataError(
                "The photographs are not those that the latents were made from.", hint=NAME_FOLDER
            )

    def batch(self, indices: Tensor) -> Tensor:
        """See `Photographs`."""
        return to_unit(to_rgb32(self._images[indices.numpy()]))


class FolderPhotographs:
    """Those of an image folder or of tars, read and cut again with every batch, as they were for the encoder.

    Pillow decodes without Python's lock, so threads are enough.
    """

    def __init__(self, data: Latents, root: Path) -> None:
        self.root, self.size_px = root, int(data.index.images["size_px"])
        listed = _read_list(data.folder / FILES_NAME)
        self._files, self._bytes, self._tars = listed["files"], listed["bytes"], listed["tars"]
        if not len(self._files) == len(self._bytes) == len(data):
            raise DataError(
                f"{data.folder / FILES_NAME} lists {len(self._files)} photographs of {len(data)}.",
                hint=PREPARE_AGAIN,
            )
        if not root.is_dir():
            raise DataError(f"The photographs are not in {root} any more.", hint=NAME_FOLDER)
        self._threads = ThreadPoolExecutor(default_workers())
        self._read(0)

    def batch(self, indices: Tensor) -> Tensor:
        """See `Photographs`."""
        return to_unit(np.stack(list(self._threads.map(self._read, indices.tolist()))))

    def _read(self, index: int) -> np.ndarray:
        path = self.root / self._files[index]
        try:
            content = self._place(index).read_bytes()
            if len(content) != self._bytes[index]:
                raise DataError(f"{len(content)} bytes, there were {self._bytes[index]}")
            return decode(content, self.size_px)
        except (OSError, DataError) as error:
            raise DataError(
                f"{path} is not the photograph that its latent was made from: {error}",
                hint=f"{NAME_FOLDER}; if they have changed, {PREPARE_AGAIN}",
            ) from error

    def _place(self, index: int) -> Readable:
        tar, offset = self._tars[index] if self._tars else (None, 0)
        size = self._bytes[index]
        return Listed(self._files[index], size, 0, tar, offset).below(self.root)


def _read_list(path: Path) -> dict[str, Any]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: list(listed[key]) for key in ("files", "bytes")}
        return lists | {"tars": list(listed.get("tars", ()))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error!r}", hint=PREPARE_AGAIN) from error
