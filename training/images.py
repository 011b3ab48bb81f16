"""One photograph: file bytes to a square of uint8 RGB, the same whoever asks."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cat_serve.errors import DataError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
BACKGROUND = (255, 255, 255)
MAX_PX = 89_478_485  # Pillow's own limit: a 24-bit image of a quarter of a gibibyte


def is_image_name(name: str) -> bool:
    """Tell whether a file's name is that of an image; hidden files are none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def decode(data: bytes, size_px: int) -> np.ndarray:
    """Decode the bytes of an image file to uint8 [size_px, size_px, 3].

    Upright as its EXIF orientation says, RGB (`to_rgb`), centre crop (`centre_crop`). Of an animation the first
    frame; colour profiles are not applied.

    Raises:
        DataError: no image, a damaged one, or one too large to decode; the message says which.
    """
    if not data:
        raise DataError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _require_size(image.size, size_px)
            image.load()
            return centre_crop(to_rgb(ImageOps.exif_transpose(image)), size_px)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("not an image that Pillow knows") from error
    except Exception as error:  # on damaged files Pillow's parsers raise nearly anything
        raise DataError(f"{type(error).__name__}: {error}") from error


def _require_size(size: tuple[int, int], size_px: int) -> None:
    """Refuse what would not fit into memory, decoded or enlarged (a line of pixels would be enlarged a lot)."""
    longest, shortest = max(size), min(size)
    if longest * shortest > MAX_PX or longest / shortest * size_px**2 > MAX_PX:
        raise DataError(f"too large: {size[0]} x {size[1]} px")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: alpha is laid over white, 16 bits are scaled to 8.

    Raises:
        DataError: pixels whose range nothing tells (floats, 32-bit integers).
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of mode {image.mode!r} have no known range")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    background = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, seen).convert("RGB")


def centre_crop(image: Image.Image, size_px: int) -> np.ndarray:
    """Shrink an RGB image until its shorter side is `size_px` and cut out the middle: uint8 [S, S, 3].

    The field's way with ImageNet, from ADM (Dhariwal and Nichol, arXiv 2105.05233, `center_crop_arr`): halve
    with a box filter while both sides stay at least twice too large, then bicubic. Small images are enlarged.
    ADM does not turn images as their EXIF says and drops alpha; `decode` does otherwise.
    """
    while min(image.size) >= 2 * size_px:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size_px / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return np.array(image.crop((left, top, left + size_px, top + size_px)))
