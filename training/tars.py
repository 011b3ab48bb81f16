"""Photographs in tars: shards of webdataset, one tar for each class, by itself or inside another (ILSVRC's), or a tree."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cat_serve.errors import DataError
from training.class_names import class_order, name_classes
from training.folder import SPLITS
from training.images import is_image_name
from training.listing import Listed, ListedImages

SUFFIX = ".tar"
LABEL_SUFFIXES = ("cls", "json")
JSON_LABELS = ("label", "cls", "class")
LAYOUTS = "shards of webdataset (KEY.jpg beside KEY.cls or KEY.json), one tar of images for each class, a tar of those, or one tar of class folders"


class TarImages(ListedImages):
    """The images of one tar, or of all tars in a folder. Nothing is unpacked: they are read where they lie.

    A tar whose images have labels beside them is a shard of webdataset, and its labels are the classes.
    A tar by itself with folders of images is a tree, and its folders are the classes, as in `ImageFolder`;
    any other tar of images is the class that it is named after. Tars may lie inside a tar.

    Args:
        place: a tar, or a folder of tars.
        size_px: the side of the squares that are cut out.
        class_names: a file with names for the labels, or for the classes' tars (`class_names.FORMATS`).
        workers: processes that read; 0 reads in this one.

    Raises:
        DataError: a tar is damaged or compressed, or its contents are laid out in another way.
    """

    def __init__(
        self, place: Path, size_px: int, class_names: Path | None = None, workers: int = 0
    ) -> None:
        from tqdm import tqdm

        tars = [place] if place.is_file() else sorted(tars_in(place))
        listing = tqdm(tars, desc="list tars", unit="tar", disable=len(tars) < 2)
        shards = [shard for tar in listing for shard in _shards(tar)]
        classes: defaultdict[str, list[Listed]] = defaultdict(list)
        for shard in shards:
            for label, image in shard.images(alone=len(shards) == 1):
                classes[label].append(image)
        _require_one_layout(place, {bool(shard.labels) for shard in shards}, classes)
        labels = sorted(classes, key=class_order)
        root = place.parent if place.is_file() else place
        found = [sorted(classes[label]) for label in labels]
        super().__init__(root, name_classes(labels, class_names), found, size_px, workers, "tars")


def tars_in(folder: Path) -> list[Path]:
    """Return the tars that lie in a folder itself."""
    return [
        path for path in folder.iterdir()
        if path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()
    ]  # fmt: skip


def is_tars(place: Path) -> bool:
    """Tell whether a place is a tar, or a folder of tars and of no folders that could be classes."""
    if place.is_file():
        return SUFFIX in place.suffixes[-2:]
    if not place.is_dir() or not tars_in(place):
        return False
    return not any(p.is_dir() and not p.name.startswith(".") for p in place.iterdir())


def _require_one_layout(place: Path, labelled: set[bool], classes: dict[str, list[Listed]]) -> None:
    if classes and len(labelled) == 1:
        return
    what = "Some tars have labels and some have none" if classes else "There are no images in tars"
    raise DataError(f"{what} in {place}.", hint=LAYOUTS)


# --- one tar -------------------------------------------------------------------------------------


@dataclass
class _Shard:
    """The images of one tar, and the labels by key: the path up to the first dot of a name."""

    name: str
    pictures: list[Listed]
    labels: dict[str, str]

    def images(self, alone: bool) -> Iterator[tuple[str, Listed]]:
        """Yield (label, image); without any labels, the folders or the tar's own name are the labels.

        Beside labels, `KEY.seg.png` is no photograph but another part of the sample, as webdataset has it.

        Args:
            alone: whether there is no other tar.

        Raises:
            DataError: an image has no label, or what the classes are cannot be told.
        """
        if not self.labels:
            yield from _by_folder(self, alone)
            return
        for image in self.pictures:
            key, suffix = _key(self.path(image))
            if key in self.labels:
                if "." not in suffix:
                    yield self.labels[key], image
            else:
                raise DataError(
                    f"{image.name} has no label.", hint=f"put {key}.cls beside it in the tar"
                )

    def path(self, image: Listed) -> str:
        """Return the path of an image inside the tar."""
        return image.name.removeprefix(f"{self.name}/")


def _by_folder(shard: _Shard, alone: bool) -> Iterator[tuple[str, Listed]]:
    """Yield (class, image) of a tar without labels: its class folders, or all of it as one class.

    Raises:
        DataError: images lie beside class folders, or there are class folders in one of several tars.
    """
    parents = [PurePosixPath(shard.path(image)).parent.parts for image in shard.pictures]
    levels = zip(*parents, strict=False)  # as deep as the image that lies highest
    depth = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    heads = [parts[depth] if len(parts) > depth else None for parts in parents]
    folders = {head for head in heads if head is not None}
    if alone and None not in heads and "train" in folders and folders <= SPLITS:
        train = [
            image for image, head in zip(shard.pictures, heads, strict=True) if head == "train"
        ]
        yield from _by_folder(_Shard(shard.name, train, {}), alone)
    elif not folders or (not alone and None in heads):
        for image in shard.pictures:
            yield PurePosixPath(shard.name).stem, image
    elif alone and None not in heads:
        yield from zip((head for head in heads if head), shard.pictures, strict=True)
    elif alone:
        loose = shard.path(shard.pictures[heads.index(None)])
        raise DataError(
            f"{loose} and others lie beside folders in {shard.name}.",
            hint="every image belongs into a folder of its class, or none does",
        )
    else:
        some = ", ".join(sorted(folders)[:3])
        raise DataError(
            f"{shard.name} has folders in it ({some}) and other tars beside it: either could be the classes.",
            hint="put class folders into one tar, or the images of each tar into one folder",
        )


def _key(name: str) -> tuple[str, str]:
    """Split at the first dot of the file's name: `a.b/c.d.e` is (`a.b/c`, `d.e`)."""
    path = PurePosixPath(name)
    key, _, suffix = path.name.partition(".")
    return str(path.with_name(key)), suffix.lower()


def _shards(tar: Path) -> Iterator[_Shard]:
    """Yield the tar, or the tars inside it.

    Raises:
        DataError: it is no tar, a damaged one, or compressed.
    """
    if not tar.is_file():
        raise DataError(f"There is no tar {tar}.", hint="name a tar or a folder with --images")
    changed_ns = tar.stat().st_mtime_ns
    try:
        with tar.open("rb") as stream:
            yield from _walk(stream, tar.name, tar.name, changed_ns, tar.stat().st_size)
    except tarfile.TarError as error:
        raise DataError(
            f"{tar} cannot be read as a tar: {error}.",
            hint="unpack it if it is compressed; fetch it again if it is damaged",
        ) from error


def _walk(
    stream: BinaryIO, container: str, name: str, changed_ns: int, end: int
) -> Iterator[_Shard]:
    """Walk the tar that begins where the stream stands; offsets are those of the stream."""
    shard, inner = _Shard(name, [], {}), []
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            if not member.isfile() or path.name.startswith("."):
                continue
            key, suffix = _key(member.name)
            if path.suffix == SUFFIX:
                inner.append(member)
            elif is_image_name(path.name):
                listed = (f"{name}/{member.name}", member.size, changed_ns)
                shard.pictures.append(Listed(*listed, container, member.offset_data))
            elif suffix in LABEL_SUFFIXES:
                _note_label(shard, key, suffix, archive, member)
    if shard.pictures or not inner:
        yield shard
    for member in inner:
        stream.seek(member.offset_data)
        last = member.offset_data + member.size
        yield from _walk(stream, container, f"{name}/{member.name}", changed_ns, last)


def _note_label(
    shard: _Shard, key: str, suffix: str, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    """Read KEY.cls, or KEY.json where it holds a label; of both, .cls counts."""
    content = archive.extractfile(member)
    assert content is not None  # it is a file
    text = content.read().decode("utf-8", "replace").strip()
    if suffix == "cls":
        shard.labels[key] = text
        return
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{shard.name}/{member.name} is no JSON: {error}") from error
    named = [values[name] for name in JSON_LABELS if isinstance(values, dict) and name in values]
    if named:
        shard.labels.setdefault(key, str(named[0]))
