"""Make a picture again from what it says of itself, and compare the two.

What is compared are decoded pixels. Pictures are those of /generate (PNG, JPEG, WebP; grids too) and /interpolate (WebP, GIF, a PNG of a zip).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cat_serve.errors import InvalidInput
from cat_serve.images import opened, read_parameters

StillFormat = Literal["png", "jpeg", "webp"]
Result = Literal["identical", "differs"]

MAX_FILE_BYTES = 1 << 30
MAX_FRAMES = 1 << 16
MAX_PIXELS = 1 << 28  # of all frames, decoded three bytes each
# What a picture says beside the parameters of its request.
FACTS = frozenset({"version", "class_name", "class_names", "frame", "z_sha256"})
SOURCES = frozenset({"seed", "seeds", "z"})
FORMAT_OF: dict[str, StillFormat | Literal["gif"]] = {
    "PNG": "png",
    "JPEG": "jpeg",
    "WEBP": "webp",
    "GIF": "gif",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that says how it was made.

    Attributes:
        data: the file.
        format: `png`, `jpeg`, `webp` or `gif`.
        pixels: uint8 [N, H, W, 3]; N is 1 but for animations.
        told: what it says of itself.
    """

    data: bytes
    format: StillFormat | Literal["gif"]
    pixels: np.ndarray
    told: Mapping[str, Any]

    @property
    def animated(self) -> bool:
        """Say whether it is of /interpolate, or a frame of such."""
        return "frames" in self.told

    @property
    def still_format(self) -> StillFormat:
        """Return the format of a picture of /generate.

        Raises:
            InvalidInput: it is a GIF, which /generate does not make.
        """
        if self.format not in ("png", "jpeg", "webp"):
            raise InvalidInput(
                "This GIF holds what /generate says of its pictures, and those are no GIFs.",
                hint="give the file as it was got",
            )
        return self.format

    @property
    def request(self) -> dict[str, Any]:
        """Return the parameters of the request that makes it."""
        request = {name: value for name, value in self.told.items() if name not in FACTS}
        return {**request, "format": "zip" if "frame" in self.told else self.format}

    @property
    def model(self) -> str:
        return str(self.told["model"])

    @property
    def version(self) -> str:
        return str(self.told["version"])

    @property
    def label(self) -> str:
        """The public name of the model that it says made it, `name@version`."""
        return f"{self.model}@{self.version}"

    def room(self, image_size: tuple[int, int]) -> int:
        """Return how many images of [height, width] it has room for, whatever it says."""
        frames, height, width, _ = self.pixels.shape
        return frames * (height // image_size[0]) * (width // image_size[1])

    @property
    def frame(self) -> int | None:
        """Return which frame of an animation it is; None if it is no single one.

        Raises:
            InvalidInput: it says something else than a number.
        """
        frame = self.told.get("frame")
        if frame is None or (type(frame) is int and 0 <= frame < MAX_FRAMES):
            return frame
        raise InvalidInput(f"The picture says that it is frame {frame!r}.", hint="a number from 0")


def read_picture(path: Path) -> Picture:
    """Read a picture.

    Raises:
        InvalidInput: there is no such file, it is too large, no picture, or does not say how it was made.
    """
    try:
        size_bytes = path.stat().st_size
        data = path.read_bytes() if size_bytes <= MAX_FILE_BYTES else b""
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    if size_bytes > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} has {size_bytes} bytes.", hint=f"at most {MAX_FILE_BYTES}")
    told = read_parameters(data)
    if not isinstance(told.get("model"), str) or not isinstance(told.get("version"), str):
        raise InvalidInput(
            f"{path} does not say which model made it.", hint="was its metadata edited?"
        )
    if not SOURCES & told.keys():
        raise InvalidInput(
            f"{path} says neither seed nor z.",
            hint="an image of a large explicit z can be made again only by whoever has the z",
        )
    image_format, pixels = _decoded(data)
    return Picture(data, image_format, pixels, told)


@dataclass(frozen=True)
class Comparison:
    """Two pictures beside each other.

    Attributes:
        levels: the largest difference of any value, in uint8 levels; None if their sizes or numbers of frames differ.
        different_share: share of the pixels that differ.
        different_frames: which frames differ, from 0; a picture that is no animation is frame 0.
        same_file: whether the files are equal byte for byte.
        shapes: of both, [N, H, W, 3].
    """

    result: Result
    levels: int | None
    different_share: float
    different_frames: tuple[int, ...]
    same_file: bool
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def sentence(self, determinism: str) -> str:
        """Return the comparison in words.

        Args:
            determinism: what is promised of the bytes of what was made again.
        """
        if self.result == "identical":
            return "identical" + (", byte for byte" if self.same_file else ", pixel for pixel")
        frames, again = self.shapes[0][0], self.shapes[1][0]
        if frames != again:
            return f"differs: it has {frames} frames, not {again}; some were added or left out"
        if self.levels is None:
            return "differs: it has another size; it was scaled or cropped"
        why = (
            "it was edited, or made in another precision or on another machine"
            if determinism == "bytes"
            else "this engine promises no more than the model's parity report says"
        )
        where = f"in {self.different_share:.2%} of the pixels"
        if frames > 1:
            count, first = len(self.different_frames), self.different_frames[0]
            where += f", in {count} of {frames} frames, first in frame {first}"
        return f"differs by {self.levels} levels, {where}; {why}"


def compare(picture: Picture, again: bytes) -> Comparison:
    """Compare a picture with the one that was made again."""
    _, pixels = _decoded(again)
    same_file, shapes = again == picture.data, (picture.pixels.shape, pixels.shape)
    if pixels.shape != picture.pixels.shape:
        return Comparison("differs", None, 1.0, (), same_file, shapes)
    largest, different = np.zeros(len(pixels), np.int64), np.zeros(len(pixels), np.int64)
    for frame, (ours, theirs) in enumerate(zip(pixels, picture.pixels, strict=True)):
        difference = np.abs(ours.astype(np.int16) - theirs).max(axis=-1)
        largest[frame], different[frame] = difference.max(), np.count_nonzero(difference)
    levels, share = int(largest.max()), float(different.sum() / pixels[..., 0].size)
    frames = tuple(np.flatnonzero(different).tolist())
    result: Result = "differs" if frames else "identical"
    return Comparison(result, levels, share, frames, same_file, shapes)


def _decoded(data: bytes) -> tuple[StillFormat | Literal["gif"], np.ndarray]:
    """Return the format and the pixels of all frames."""
    with opened(data) as image:
        frames, count = [], getattr(image, "n_frames", 1)
        if count * image.width * image.height > MAX_PIXELS:
            raise InvalidInput(
                f"The picture has {count} frames of {image.width} x {image.height} px.",
                hint=f"at most {MAX_PIXELS} px in all",
            )
        for index in range(count):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return FORMAT_OF[str(image.format)], np.stack(frames)
