"""What an evaluation has computed, kept by what it depends on, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cat_serve.files import write_text, written_whole

CHUNK = 500


class Store:
    """Arrays in pieces of 500 rows, in folders named by a digest of everything that the values depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def array(
        self,
        kind: str,
        key: Mapping[str, Any],
        count: int,
        make: Callable[[int, int], np.ndarray],
        what: str = "",
    ) -> np.ndarray:
        """Return `count` rows; `make(start, stop)` is asked for the pieces that are not here yet.

        Args:
            kind: the first word of the folder's name.
            key: everything that the values depend on; JSON. Not how many they are: more rows begin with the same.
            what: the words before the progress bar, if not `kind`.
        """
        from tqdm import tqdm

        folder = self.place(kind, key)
        spans = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        there = {
            span: piece for span in spans if (piece := _read(_path(folder, *span))) is not None
        }
        done = sum(len(piece) for piece in there.values())
        if not there:
            write_text(folder / "key.json", json.dumps(key, indent=1) + "\n")
        with tqdm(total=count, initial=done, unit="img", desc=what or kind) as progress:
            for start, stop in spans:
                if (start, stop) in there:
                    continue
                piece = make(start, stop)
                _write(_path(folder, start, stop), piece)
                there[start, stop] = piece
                progress.update(len(piece))
        return np.concatenate([there[span] for span in spans])

    def place(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return where something with this key lies, or will."""
        text = json.dumps(key, sort_keys=True).encode()
        return self.folder / f"{kind}-{hashlib.sha256(text).hexdigest()[:16]}"


def digest_of(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape, type and bytes, 64 hex digits."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _path(folder: Path, start: int, stop: int) -> Path:
    return folder / f"{start:08d}-{stop:08d}.npy"


def _read(path: Path) -> np.ndarray | None:
    """Return a piece, or None where there is none; a damaged one is made again."""
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
        return array
    except (FileNotFoundError, ValueError, EOFError):
        return None


def _write(path: Path, array: np.ndarray) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)
