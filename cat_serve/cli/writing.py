"""Where a command of images writes, and how it tells how far it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from tqdm import tqdm

# A terminal redraws its line; in a file or a log every update stays.
SECONDS_BETWEEN_LINES = 10.0


def is_folder(out: str) -> bool:
    """Say whether --out means a folder: it is one, ends in a slash, or has no suffix."""
    return out.endswith("/") or Path(out).is_dir() or not Path(out).suffix


def require_writable(out: Path) -> None:
    """Refuse a place where nothing can be written, before anything is made.

    Raises:
        InvalidInput: naming what stands in the way.
    """
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    is_file = there == out and there.is_file()
    folder = there.absolute().parent if is_file else there
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "may not be written" if folder.is_dir() else "is no folder"
        raise InvalidInput(
            f"--out {out}: {folder} {reason}.", hint="give a place where this user may write"
        )


def bar_of_images(total: int, name: str) -> tqdm:
    """Return a progress bar on stderr, whose rate and time left are of images."""
    from tqdm import tqdm

    on_terminal = sys.stderr.isatty()
    interval_s = 0.1 if on_terminal else SECONDS_BETWEEN_LINES
    return tqdm(
        total=total, unit="img", desc=name, mininterval=interval_s, maxinterval=interval_s,
        ascii=None if on_terminal else True,
    )  # fmt: skip
