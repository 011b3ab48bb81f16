"""An image folder decoded to one file, for training that visits small photographs many times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from cat_serve.errors import DataError
from cat_serve.files import write_text
from training.sources import Source, require_few_broken

IMAGES_NAME = "photographs.npy"
NOTE_NAME = "photographs.json"
HELD_OUT = 20
MOST_HELD_OUT = 1000


def decode_all(source: Source, folder: Path, max_broken: float) -> np.ndarray:
    """Return every readable photograph, shuffled: uint8 [N, S, S, 3], mapped from a file in `folder`.

    The file is made anew when the source has changed. Shuffled, so that any part of it shows all classes.

    Raises:
        DataError: more than `max_broken` of them are broken.
    """
    path, note = folder / IMAGES_NAME, folder / NOTE_NAME
    wanted = {**source.description, "root": None}
    if (count := _whole(note, wanted)) is None:
        note.unlink(missing_ok=True)
        count = _write(source, path, max_broken)
        write_text(note, json.dumps(wanted | {"count": count}))
    images: np.ndarray = np.load(path, mmap_mode="c")  # torch wants arrays it may write to
    return images[:count]


def _whole(note: Path, wanted: dict[str, object]) -> int | None:
    """Return how many photographs the file holds; None if it is not there, or made of others."""
    if not note.exists():
        return None
    found: dict[str, object] = json.loads(note.read_text(encoding="utf-8"))
    count = found.pop("count")
    return int(str(count)) if found == wanted else None


def _write(source: Source, path: Path, max_broken: float) -> int:
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    size, total, count = source.size_px, len(source), 0
    broken: dict[str, str] = {}
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (total, size, size, 3))
    order = np.random.default_rng(0).permutation(total)
    with tqdm(total=total, unit="img", desc="decode") as progress:
        for index, photograph in zip(order, source.read(order), strict=True):
            progress.update()
            if photograph.pixels is not None:
                images[count] = photograph.pixels
                count += 1
                continue
            name = source.files[index] if source.files else str(index)
            broken[name] = photograph.reason
            progress.write(f"broken: {name}: {photograph.reason}", file=sys.stderr)
            require_few_broken(broken, total, max_broken)
    images.flush()
    if broken:
        print(f"{len(broken)} of {total} photographs are broken and left out", file=sys.stderr)
    return count


def hold_out(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off the last twentieth, a thousand at most: photographs to train on, and to measure on.

    Raises:
        DataError: there is nothing to cut.
    """
    held_out = max(1, min(len(images) // HELD_OUT, MOST_HELD_OUT))
    if held_out >= len(images):
        raise DataError(f"{len(images)} photographs are too few to train on.", hint="at least 2")
    return images[:-held_out], images[-held_out:]
