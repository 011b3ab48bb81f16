"""Where photographs come from: one small interface, and the flags that choose."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cat_serve.errors import DataError, InvalidInput

if TYPE_CHECKING:
    import numpy as np

    from training.listing import Listed
    from training.readers import Photograph

MAX_BROKEN = 0.01
NAMED = 5


class Source(Protocol):
    """Photographs with labels, in a fixed order.

    Attributes:
        size_px: the side of every photograph.
        labels: int64 [N], values 0..len(class_names)-1, of broken photographs too.
        description: what `index.json` says of them; with it others find them again. `root` is where they lie
            today, everything else is part of their identity.
        files, file_bytes: name and size of each, where photographs are files, or parts of tars.
        listed: where each is, for those.
    """

    size_px: int
    class_names: tuple[str, ...]
    labels: np.ndarray
    description: dict[str, Any]
    files: tuple[str, ...] | None
    file_bytes: tuple[int, ...] | None
    listed: Sequence[Listed]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[Photograph]:
        """Yield the photographs of int64 indices, in order; broken ones too."""
        ...

    def close(self) -> None:
        """Let go of whatever `read` needed."""
        ...


class ArraySource:
    """Photographs that are in memory, uint8 [N, S, S, 3]."""

    files: tuple[str, ...] | None = None
    file_bytes: tuple[int, ...] | None = None
    listed: Sequence[Listed] = ()

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        description: dict[str, Any],
    ) -> None:
        self.images, self.labels, self.class_names = images, labels, class_names
        self.description = description
        self.size_px = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Iterator[Photograph]:
        """See `Source`."""
        from training.readers import Photograph

        return (Photograph(self.images[index]) for index in indices)

    def close(self) -> None:
        """Do nothing."""


def fashion_mnist(folder: Path) -> ArraySource:
    """Return the training photographs of Fashion-MNIST, 32 px."""
    from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32

    images, labels = load_split("train", folder)
    description = {"dataset": "fashion-mnist", "split": "train", "licence": "MIT", "layout": "to_rgb32"}  # fmt: skip
    return ArraySource(to_rgb32(images), labels, CLASS_NAMES, description)


def require_few_broken(broken: Mapping[str, str], count: int, max_share: float) -> None:
    """Stop when more than `max_share` of `count` photographs are broken (path -> reason).

    Raises:
        DataError: names the first of them.
    """
    if len(broken) <= max_share * count:
        return
    named = "; ".join(f"{path}: {reason}" for path, reason in list(broken.items())[:NAMED])
    raise DataError(
        f"{len(broken)} of {count} photographs are broken, more than {max_share:.2%}: {named}",
        hint="mend or remove them, or allow more with --max-broken",
    )


# --- the command line ----------------------------------------------------------------------------


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `open_source` reads."""
    add = parser.add_argument_group("photographs (default: Fashion-MNIST)").add_argument
    add("--data", type=Path, help="folder of Fashion-MNIST's files (default: where Debian puts them)")  # fmt: skip
    add("--images", type=Path,
        help="images instead: a folder with one sub-folder per class, a tar, or a folder of tars")  # fmt: skip
    add("--size", type=int, help="side in pixels that the images are cut to")
    add("--class-names", type=Path, help="file with a name for every class folder")
    add("--workers", type=int, help="processes that read images (default: one per core, at most 8)")
    add("--max-broken", type=float, default=MAX_BROKEN, metavar="SHARE",
        help="stop when more than this share of the images is broken (default: %(default)s)")  # fmt: skip


def open_source(arguments: argparse.Namespace) -> Source:
    """Open the photographs that the arguments name; see `open_folder`."""
    from training.fashion_mnist import DEFAULT_FOLDER

    return open_folder(arguments) or fashion_mnist(arguments.data or DEFAULT_FOLDER)


def open_folder(arguments: argparse.Namespace) -> Source | None:
    """Open the folder or tars of images that the arguments name; None if they name none, which is Fashion-MNIST.

    Raises:
        InvalidInput: flags that do not belong together, or values out of range.
        DataError: the folder is not laid out as it should be.
    """
    from training.folder import ImageFolder
    from training.readers import default_workers
    from training.tars import TarImages, is_tars

    a = arguments
    if not 0 <= a.max_broken < 1:
        raise InvalidInput(f"--max-broken {a.max_broken} is no share.", hint="from 0 to below 1")
    if a.images is None:
        if a.size is not None or a.class_names is not None:
            raise InvalidInput("--size and --class-names belong to image folders.", hint="name one with --images")  # fmt: skip
        return None
    if a.data is not None:
        raise InvalidInput("--images and --data name two data sets.", hint="give one of them")
    if a.size is None or a.size < 1:
        raise InvalidInput(f"--images needs --size, got {a.size}.", hint="for example --size 256")
    workers = default_workers() if a.workers is None else a.workers
    if workers < 0:
        raise InvalidInput(f"--workers {workers} is negative.", hint="0 reads in this process")
    opened = TarImages if is_tars(a.images) else ImageFolder
    return opened(a.images, a.size, a.class_names, workers)
