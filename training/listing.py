"""Photographs in a fixed order, each a file of its own or a part of a tar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.readers import Photograph, Piece, Readers

LAYOUT = "upright, over white, centre crop"


@dataclass(frozen=True, order=True)
class Listed:
    """One photograph that was found.

    Attributes:
        name: what it is called: its path below the root; inside a tar, the tar's path and its own.
        size_bytes: of the file.
        changed_ns: time of change of the file, or of its tar.
        container: path of the tar below the root; None for a file of its own.
        offset_bytes: where it begins in the tar.
    """

    name: str
    size_bytes: int
    changed_ns: int
    container: str | None = None
    offset_bytes: int = 0

    def below(self, root: Path) -> Path | Piece:
        """Return where its bytes are."""
        if self.container is None:
            return root / self.name
        return Piece(root / self.container, self.offset_bytes, self.size_bytes)


class ListedImages:
    """A `Source` of photographs that were listed, class by class.

    Args:
        found: the photographs of each class.
        dataset: what `index.json` calls such a source.
        workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        found: Sequence[Sequence[Listed]],
        size_px: int,
        workers: int,
        dataset: str,
    ) -> None:
        self.root, self.size_px, self.class_names = root, size_px, class_names
        self.labels = np.repeat(np.arange(len(found)), [len(images) for images in found])
        self.listed: Sequence[Listed] = [image for images in found for image in images]
        self.files: tuple[str, ...] | None = tuple(image.name for image in self.listed)
        self.file_bytes: tuple[int, ...] | None = tuple(image.size_bytes for image in self.listed)
        self.description: dict[str, Any] = {
            "dataset": dataset,
            "root": str(root.resolve()),
            "size_px": size_px,
            "layout": LAYOUT,
            "listing": _digest(self.listed),
        }
        self._readers = Readers(workers)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> Iterator[Photograph]:
        """Yield the photographs of int64 indices, in order."""
        places = [self.listed[index].below(self.root) for index in indices]
        return self._readers.read(places, self.size_px)

    def close(self) -> None:
        """End the processes that read."""
        self._readers.close()


def _digest(listed: Sequence[Listed]) -> str:
    """Hash what tells a changed source: names, sizes, times of change, and places inside tars."""
    rows = [astuple(image) if image.container else astuple(image)[:3] for image in listed]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
