"""The only place outside the graph where floats become bytes, and where bytes become files."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin

PNG_LEVEL = 1


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Round float images, nominally -1..1, to uint8: round(clamp((x + 1) * 127.5, 0, 255))."""
    scaled = (np.asarray(images, dtype=np.float32) + np.float32(1)) * np.float32(127.5)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode uint8 [H, W, 3] as PNG, with `text` as its metadata. The same input gives the same bytes."""
    information = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        information.add_itxt(key, value)
    stream = io.BytesIO()
    Image.fromarray(image).save(
        stream,
        format="png",
        compress_level=PNG_LEVEL,
        compress_type=zlib.Z_RLE,
        pnginfo=information,
    )
    return stream.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Decode a PNG to uint8 [H, W, 3].

    Raises:
        ValueError: this is no PNG, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a readable PNG: {error}") from error


def grid(images: np.ndarray, columns: int | None = None, gap_px: int = 0) -> np.ndarray:
    """Lay uint8 [N, H, W, 3] out row by row as one image; missing cells and gaps are white.

    Args:
        columns: images in a row; by default the grid is nearly square.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + gap_px, width + gap_px
    canvas = np.full((rows * step_y - gap_px, columns * step_x - gap_px, channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * step_y, (index % columns) * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas
