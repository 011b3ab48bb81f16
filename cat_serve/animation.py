"""Frames as one file: animated WebP, GIF, or a zip of PNGs. The same frames give the same bytes.

WebP and PNG are lossless. A GIF has at most 256 colours a frame: a frame with no more is exact, any other gets a palette
of its own, without dithering. All three say how they were made: WebP in EXIF, GIF as its comment, each PNG for itself.
Both animated formats show two equal frames in a row as one that lasts longer.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from cat_serve.images import METADATA_KEY, WEBP_METHOD, encode, exif_of

AnimationFormat = Literal["webp", "gif", "zip"]

ANIMATION_FORMATS: tuple[AnimationFormat, ...] = get_args(AnimationFormat)
ANIMATION_MEDIA_TYPES: dict[AnimationFormat, str] = {
    "webp": "image/webp",
    "gif": "image/gif",
    "zip": "application/zip",
}
FOREVER = 0
GIF_COLOURS = 256
GIF_TICK_MS = 10
# Browsers show GIF frames of less than 20 ms ten times slower, and WebP counts whole milliseconds.
MAX_FPS: dict[AnimationFormat, int] = {"webp": 60, "gif": 50, "zip": 60}

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX, READABLE = 3, 0o644 << 16


def durations_ms(count: int, fps: float, tick_ms: int = 1) -> list[int]:
    """Return how long each frame is shown, in whole ticks; rounding never adds up over frames."""
    ends = [tick_ms * round(1e3 * (frame + 1) / (fps * tick_ms)) for frame in range(count)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def encode_animation(
    frames: np.ndarray,
    animation_format: AnimationFormat,
    fps: float,
    loop: bool,
    parameters: Mapping[str, Any],
) -> bytes:
    """Encode uint8 [N, H, W, 3].

    Args:
        loop: play for ever, else once; a zip has only frames.
        parameters: what the file says of itself, JSON-serialisable.
    """
    if animation_format == "zip":
        return _zip(frames, parameters)
    text = f"{METADATA_KEY}: {json.dumps(parameters)}"
    if animation_format == "gif":
        return _gif(frames, fps, loop, text)
    return _webp(frames, fps, loop, json.dumps(parameters))


def _webp(frames: np.ndarray, fps: float, loop: bool, text: str) -> bytes:
    return _saved(
        [Image.fromarray(frame) for frame in frames],
        format="webp",
        lossless=True,
        method=WEBP_METHOD,
        duration=durations_ms(len(frames), fps),
        loop=FOREVER if loop else 1,
        exif=exif_of(text),
    )


def _gif(frames: np.ndarray, fps: float, loop: bool, text: str) -> bytes:
    # without the number of times, a GIF is played once
    repeat: dict[str, Any] = {"loop": FOREVER} if loop else {}
    return _saved(
        [_with_palette(frame) for frame in frames],
        format="gif",
        duration=durations_ms(len(frames), fps, GIF_TICK_MS),
        comment=text.encode("ascii"),
        disposal=0,
        optimize=False,
        **repeat,
    )


def _with_palette(frame: np.ndarray) -> Image.Image:
    """Return the frame in at most 256 colours; exactly, if it has no more."""
    image = Image.fromarray(frame)
    height, width, _ = frame.shape
    colours = image.getcolors(GIF_COLOURS)
    if colours is None:
        # Median cut is a sixth nearer and takes twenty times as long; dithering would flicker from frame to frame.
        return image.quantize(GIF_COLOURS, method=Image.Quantize.FASTOCTREE)
    packed = frame.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    numbers, index = np.unique(
        packed, return_inverse=True
    )  # of rows of three it takes ten times as long
    palette = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1).astype(np.uint8)
    exact = Image.fromarray(index.reshape(height, width).astype(np.uint8), mode="P")
    exact.putpalette(palette.tobytes())
    return exact


def _saved(images: Sequence[Image.Image], **options: Any) -> bytes:
    stream = io.BytesIO()
    images[0].save(stream, save_all=True, append_images=images[1:], **options)
    return stream.getvalue()


def _zip(frames: np.ndarray, parameters: Mapping[str, Any]) -> bytes:
    """Store numbered PNGs, each of which says which frame it is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, frame in enumerate(frames):
            entry = zipfile.ZipInfo(f"frame-{number:04d}.png", ZIP_EPOCH)
            entry.create_system, entry.external_attr = UNIX, READABLE
            archive.writestr(entry, encode(frame, "png", {**parameters, "frame": number}))
    return stream.getvalue()
