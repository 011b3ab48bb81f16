"""A folder of photographs with one sub-folder per class, ImageNet's tree included."""

from __future__ import annotations

import os
from pathlib import Path

from cat_serve.errors import DataError
from training.class_names import class_order, name_classes
from training.images import SUFFIXES, is_image_name
from training.listing import Listed, ListedImages

SPLITS = frozenset(("train", "val", "valid", "validation", "test"))


class ImageFolder(ListedImages):
    """Every image below FOLDER/CLASS/, at any depth, in a fixed order: class by class, then by path.

    Class folders whose names are numbers are ordered as numbers, before all others; hidden folders are no
    classes. A folder that holds nothing but splits (`train`, `val`, ...) is entered at `train`.

    Args:
        size_px: the side of the squares that are cut out.
        class_names: a file with names for the folders (`class_names.FORMATS`).
        workers: processes that read; 0 reads in this one.

    Raises:
        DataError: no such folder, no class folders, one without images, or images that lie beside them.
    """

    def __init__(
        self, folder: Path, size_px: int, class_names: Path | None = None, workers: int = 0
    ) -> None:
        root = _training_split(folder)
        folders = _class_folders(root)
        names = name_classes(folders, class_names)
        found = [_images_below(root, name) for name in folders]
        for name, images in zip(folders, found, strict=True):
            if not images:
                raise DataError(
                    f"The class folder {root / name} holds no images.",
                    hint=f"remove it, or add images ({', '.join(sorted(SUFFIXES))})",
                )
        super().__init__(root, names, found, size_px, workers, "folder")


def _training_split(folder: Path) -> Path:
    """Return folder/train where the folder holds splits alone, and the folder itself elsewhere."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", hint="name a folder with --images")
    inside = {entry.name for entry in _visible(folder) if entry.is_dir()}
    train = folder / "train"
    if "train" in inside and inside <= SPLITS and any(e.is_dir() for e in _visible(train)):
        return train
    return folder


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]


def _class_folders(root: Path) -> list[str]:
    """Return the names of the class folders, numbers first and in their order."""
    entries = _visible(root)
    folders = [entry.name for entry in entries if entry.is_dir()]
    loose = sorted(e.name for e in entries if e.is_file() and is_image_name(e.name))
    if loose or not folders:
        what = (
            f"{len(loose)} images, {loose[0]} among them," if loose else "Nothing that is a class"
        )
        raise DataError(
            f"{what} {'lie' if loose else 'lies'} in {root} itself.",
            hint="every image belongs into a sub-folder of its class: FOLDER/CLASS/IMAGE",
        )

    return sorted(folders, key=class_order)


def _images_below(root: Path, name: str) -> list[Listed]:
    """Return all images of a class, ordered by path."""
    images, seen = [], set()
    for folder, inside, files in os.walk(root / name, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links that go round in circles
            inside.clear()
            continue
        seen.add(real)
        inside[:] = [entry for entry in inside if not entry.startswith(".")]
        for file in files:
            path = Path(folder, file)
            if is_image_name(file) and path.exists():
                status = path.stat()
                below = path.relative_to(root).as_posix()
                images.append(Listed(below, status.st_size, status.st_mtime_ns))
    return sorted(images)
