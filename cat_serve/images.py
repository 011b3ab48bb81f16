"""The only place outside the graph where floats become bytes, and where bytes become files.

Every encoder gives the same bytes for the same input. `encode` puts the parameters of an image into the file,
`read_parameters` takes them out: PNG has them as text (iTXt) under the key `cat-serve`, JPEG and WebP in EXIF as
UserComment after the same word. npy has no place for them.
"""

from __future__ import annotations

import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from cat_serve.errors import CatServeError, InvalidInput

Format = Literal["png", "jpeg", "webp", "npy"]

FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "npy": "application/x-npy",
}
# The formats cannot say more.
MAX_SIDE_PX: dict[Format, int] = {"jpeg": 65_500, "webp": 16_383}

METADATA_KEY = "cat-serve"
READABLE = ("PNG", "JPEG", "WEBP", "GIF")
EXIF_ASCII = b"ASCII\0\0\0"
PNG_LEVEL = 1
JPEG_QUALITY = 90
WEBP_METHOD = 0


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


def encode(
    image: np.ndarray, image_format: Format, parameters: Mapping[str, Any] | None = None
) -> bytes:
    """Encode uint8 [H, W, 3], with `parameters` (JSON-serialisable) as metadata where the format can hold them.

    PNG, WebP and npy are lossless; JPEG has quality 90.
    """
    text = None if parameters is None else json.dumps(parameters)  # ASCII, which EXIF needs
    return ENCODERS[image_format](image, text)


def encode_npy(array: np.ndarray) -> bytes:
    """Return the array as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_parameters(data: bytes) -> dict[str, Any]:
    """Return the parameters in a PNG, JPEG or WebP of `encode`, or in a WebP or GIF of `encode_animation`.

    Raises:
        InvalidInput: this is no such image, or it has none.
    """
    with opened(data) as image:
        text = _text_of(image)
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise InvalidInput(
            "This image does not say how it was made.",
            hint="programs that edit or convert an image often drop its metadata",
        )
    return parameters


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open a PNG, JPEG, WebP or GIF that may come from anybody, for as long as the block takes.

    Raises:
        InvalidInput: it is none, it is damaged, also if the block finds out, or it has more pixels than Pillow decodes
            without a warning.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[*READABLE]) as image:
                yield image
    except CatServeError:
        raise
    except Exception as error:  # of a damaged file decoders raise whatever they stumble over
        raise InvalidInput(
            "This is not a PNG, JPEG, WebP or GIF that can be read.",
            hint="give the file as it was got",
        ) from error


def _text_of(image: Image.Image) -> str:
    """Return our text in the metadata, or nothing."""
    if image.format == "PNG":
        image.load()  # text may stand behind the pixels
        return str(image.info.get(METADATA_KEY, ""))
    marker = f"{METADATA_KEY}: ".encode()
    if image.format == "GIF":
        comment = image.info.get("comment", b"")
    else:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
        marker = EXIF_ASCII + marker
    if not isinstance(comment, bytes) or not comment.startswith(marker):
        return ""
    return comment.removeprefix(marker).decode("ascii", errors="replace")


def exif_of(text: str) -> Image.Exif:
    """Return EXIF data that hold our text, which must be ASCII."""
    exif = Image.Exif()
    comment = EXIF_ASCII + f"{METADATA_KEY}: {text}".encode("ascii")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def _png(image: np.ndarray, text: str | None) -> bytes:
    return encode_png(image, {} if text is None else {METADATA_KEY: text})


def _jpeg(image: np.ndarray, text: str | None) -> bytes:
    return _with_exif(image, text, format="jpeg", quality=JPEG_QUALITY)


def _webp(image: np.ndarray, text: str | None) -> bytes:
    return _with_exif(image, text, format="webp", lossless=True, method=WEBP_METHOD)


def _with_exif(image: np.ndarray, text: str | None, **options: Any) -> bytes:
    if text is not None:
        options["exif"] = exif_of(text)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, **options)
    return stream.getvalue()


ENCODERS: dict[Format, Callable[[np.ndarray, str | None], bytes]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "npy": lambda image, text: encode_npy(image),
}


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


def grid_shape(count: int) -> tuple[int, int]:
    """Return (rows, columns) of a nearly square grid."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def grid(images: np.ndarray, columns: int | None = None, gap_px: int = 0) -> np.ndarray:
    """Lay uint8 [N, H, W, 3] out row by row as one image; missing cells and gaps are white.

    Args:
        columns: images in a row; by default the grid is nearly square.
    """
    count, height, width, channels = images.shape
    columns = columns or grid_shape(count)[1]
    rows = math.ceil(count / columns)
    step_y, step_x = height + gap_px, width + gap_px
    canvas = np.full((rows * step_y - gap_px, columns * step_x - gap_px, channels), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * step_y, (index % columns) * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas
