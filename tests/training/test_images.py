"""Image files of every kind become the same square of RGB bytes."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.images as images
from cat_serve.errors import DataError
from training.images import centre_crop, decode
from training.readers import Photograph, Readers


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, channels)).astype(np.uint8)


def crop_of_adm(image: Image.Image, size: int) -> np.ndarray:
    """ADM's `center_crop_arr`, step by step: whole array first, then the cut."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    wide = tuple(round(x * scale) for x in image.size)
    array = np.array(image.resize(wide, resample=Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


def resample(pixels: np.ndarray, size: int, name: str) -> np.ndarray:
    """Shrink or enlarge the first axis by the formula, pixel by pixel, in float64, rounded to bytes.

    Each output is the mean of the inputs under a filter that is as wide as what it replaces.
    """

    def weight(x: float) -> float:
        if name == "box":
            return float(-0.5 < x <= 0.5)
        x = abs(x)
        if x < 1:  # Keys' cubic, a = -0.5
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    scale = len(pixels) / size
    wide = max(scale, 1.0)
    rows = []
    for row in range(size):
        centre = (row + 0.5) * scale
        weights = np.array([weight((k + 0.5 - centre) / wide) for k in range(len(pixels))])
        rows.append(np.tensordot(weights / weights.sum(), pixels.astype(float), 1))
    return np.clip(np.floor(np.array(rows) + 0.5), 0, 255).astype(np.uint8)


def slow_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """ADM's crop without Pillow: both sides halved by the box while they can be, then bicubic, then the middle."""

    def both(pixels: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
        across = resample(pixels.transpose(1, 0, 2), width, name).transpose(1, 0, 2)
        return resample(across, height, name)

    while min(pixels.shape[:2]) >= 2 * size:
        pixels = both(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, "box")
    scale = size / min(pixels.shape[:2])
    height, width = (round(side * scale) for side in pixels.shape[:2])
    pixels = both(pixels, height, width, "bicubic")
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [(32, 20), (40, 16), (64, 100), (33, 47), (70, 131), (9, 12)])
def test_crop_is_adms_by_the_formula(size: tuple[int, int]) -> None:
    """Pillow counts in whole numbers of 22 bits: one level of difference, seldom; a crop beside it is far off."""
    pixels = noise(*size)
    got = centre_crop(Image.fromarray(pixels), 16).astype(int)
    difference = np.abs(got - slow_crop(pixels, 16))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    once = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    if min(size) >= 32:
        assert np.abs(np.asarray(once).astype(int) - got).mean() > 3


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 64), (37, 70), (150, 33), (63, 300), (10, 20), (129, 128), (1, 7)]
)
def test_crop_is_the_fields(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size))
    crop = centre_crop(image, 32)
    assert (crop.shape, crop.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(crop, crop_of_adm(image, 32))


def test_square_of_the_right_size_is_left_as_it_is() -> None:
    pixels = noise(32, 32)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 32), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats_of_the_web_are_read(kind: str) -> None:
    pixels = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(Image.fromarray(pixels), kind, **options), 8)
    np.testing.assert_allclose(decoded, np.broadcast_to((200, 40, 90), (8, 8, 3)), atol=3)


def test_grey_and_bilevel_become_rgb() -> None:
    grey = noise(8, 8, 1)[..., 0]
    decoded = decode(encoded(Image.fromarray(grey)), 8)
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    assert set(np.unique(decode(encoded(bits), 8))) == {0, 255}


def test_palette_becomes_its_colours() -> None:
    image = Image.fromarray(noise(8, 8) // 64 * 64).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(image), 8), expected)


def test_alpha_is_laid_over_white() -> None:
    pixels = noise(8, 8, 4)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(decode(encoded(Image.fromarray(pixels)), 8), expected, atol=1)


def test_transparent_colour_of_a_palette_or_of_rgb_is_white() -> None:
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="L").convert("P")
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    decoded = decode(encoded(indexed, transparency=0), 2)
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 1].tolist() == [0, 0, 255]
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert (decode(encoded(red, transparency=(255, 0, 0)), 2) == 255).all()


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    values = np.array([[0, 257 * 10], [257 * 200, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values)), 2)
    assert decoded[..., 0].tolist() == [[0, 10], [200, 255]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode(encoded(image, "JPEG", quality=95), 8)
    np.testing.assert_allclose(red, np.broadcast_to((255, 0, 0), red.shape), atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    """Every stored orientation of one picture decodes to that picture."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    turn = {  # what a camera did to the picture that its tag undoes
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]  # fmt: skip
    stored = Image.fromarray(upright)
    for step in turn:
        stored = stored.transpose(step)
    tags = Image.Exif()
    tags[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=tags), 16), upright)


def test_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decode(data, 8)[0, 0].tolist() == [255, 0, 0]


WHOLE = encoded(Image.fromarray(noise(64, 64)), "JPEG")
WHOLE_PNG = encoded(Image.fromarray(noise(64, 64)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not an image"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (WHOLE_PNG[: len(WHOLE_PNG) // 2], "."),
        (WHOLE_PNG[:60] + b"\0" * 400 + WHOLE_PNG[460:], "."),
        (WHOLE[:10], "."),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "no known range"),
    ],
    ids=["zero bytes", "html", "cut JPEG", "cut PNG", "spoilt PNG", "header", "floats"],
)
def test_broken_files_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(data, 8)


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(noise(64, 64)))
    monkeypatch.setattr(images, "MAX_PX", 64 * 64 - 1)
    with pytest.raises(DataError, match="too large: 64 x 64 px"):
        decode(data, 8)


def test_pillows_own_bomb_limit_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="DecompressionBomb"):
        decode(encoded(Image.fromarray(noise(64, 64))), 8)


def test_line_of_pixels_is_not_enlarged_to_gigabytes() -> None:
    with pytest.raises(DataError, match="too large: 1 x 20000 px"):
        decode(encoded(Image.new("RGB", (1, 20_000))), 256)


# --- many of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_keep_the_order_and_name_what_is_broken(tmp_path: Path, workers: int) -> None:
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(encoded(Image.new("RGB", (8, 8), (number, 0, 0))))
    paths[7].write_bytes(b"")
    paths[21].unlink()
    readers = Readers(workers)
    try:
        read: list[Photograph] = list(readers.read(paths, 8))
        assert [p.pixels is None for p in read] == [n in (7, 21) for n in range(40)]
        assert all(p.pixels[0, 0, 0] == n for n, p in enumerate(read) if p.pixels is not None)
        assert (read[7].reason, read[21].reason) == (
            "the file is empty",
            "No such file or directory",
        )
        assert len({p.sha256 for p in read if p.pixels is not None}) == 38
    finally:
        readers.close()


def test_killed_worker_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (8, 8))))
    readers = Readers(1)
    try:
        photographs = readers.read([path] * 400, 8)
        next(photographs)
        for pid in list(readers._pool._processes):  # type: ignore[union-attr]
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match="fewer --workers"):
            list(photographs)
    finally:
        readers.close()
