"""Files of images: what is lossless, what never changes, and what they say of themselves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_serve.errors import InvalidInput
from cat_serve.images import (
    FORMATS,
    MAX_SIDE_PX,
    Format,
    decode_png,
    encode,
    encode_npy,
    encode_png,
    grid,
    grid_shape,
    read_parameters,
)

PARAMETERS = {"model": "toy", "class": 3, "class_name": "Müll & <été> 猫", "psi": 0.1, "n": 2}
WITH_METADATA: tuple[Format, ...] = ("png", "jpeg", "webp")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("image_format", WITH_METADATA)
def test_parameters_come_back_as_they_were_written(image: np.ndarray, image_format: Format) -> None:
    data = encode(image, image_format, PARAMETERS)
    assert read_parameters(data) == PARAMETERS
    assert list(read_parameters(data)) == list(PARAMETERS)


@pytest.mark.parametrize("image_format", WITH_METADATA)
def test_image_is_of_the_format_that_was_asked_for(image: np.ndarray, image_format: Format) -> None:
    opened = Image.open(io.BytesIO(encode(image, image_format, PARAMETERS)))
    assert (opened.format, opened.mode, opened.size) == (image_format.upper(), "RGB", (40, 24))


def test_parameters_stand_where_other_programs_look_for_them(image: np.ndarray) -> None:
    png = Image.open(io.BytesIO(encode(image, "png", {"seed": 1})))
    assert png.info["cat-serve"] == '{"seed": 1}'
    for image_format in ("jpeg", "webp"):
        exif = Image.open(io.BytesIO(encode(image, image_format, {"seed": 1}))).getexif()
        exif_folder, user_comment = 0x8769, 0x9286
        assert exif.get_ifd(exif_folder) == {user_comment: b'ASCII\0\0\0cat-serve: {"seed": 1}'}


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_png_and_webp_are_lossless(image: np.ndarray, image_format: Format) -> None:
    assert np.array_equal(pixels(encode(image, image_format, PARAMETERS)), image)


def test_npy_holds_the_array(image: np.ndarray) -> None:
    loaded = np.load(io.BytesIO(encode(image, "npy", PARAMETERS)), allow_pickle=False)
    assert (loaded.dtype, loaded.shape) == (np.uint8, image.shape)
    assert np.array_equal(loaded, image)
    assert np.load(io.BytesIO(encode_npy(image[None]))).shape == (1, 24, 40, 3)


def test_jpeg_is_near_on_a_smooth_image() -> None:
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    smooth = np.repeat(ramp[:, :, None], 3, axis=2)
    assert np.abs(pixels(encode(smooth, "jpeg")).astype(int) - smooth).max() <= 8


@pytest.mark.parametrize("image_format", FORMATS)
def test_same_image_gives_the_same_bytes(image: np.ndarray, image_format: Format) -> None:
    assert encode(image, image_format, PARAMETERS) == encode(image, image_format, PARAMETERS)


def without_parameters(image: np.ndarray) -> list[bytes]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", exif=_comment(b"ASCII\0\0\0a holiday"))
    return [
        *(encode(image, image_format) for image_format in WITH_METADATA),
        encode_png(image, {"cat-serve": "{"}),
        encode_png(image, {"cat-serve": "[1]"}),
        stream.getvalue(),
    ]


def _comment(text: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = text
    return exif


def test_image_of_another_program_says_nothing(image: np.ndarray) -> None:
    for data in without_parameters(image):
        with pytest.raises(InvalidInput, match="does not say how it was made"):
            read_parameters(data)


@pytest.mark.parametrize("comment", [b"", b"ASCII\0\0\0a holiday", b"ASCII\0\0\0cat-serve: \xff"])
def test_other_user_comments_are_not_ours(image: np.ndarray, comment: bytes) -> None:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", exif=_comment(comment))
    with pytest.raises(InvalidInput, match="does not say how it was made"):
        read_parameters(stream.getvalue())


@pytest.mark.parametrize("cut", ["text", "empty", "half", "npy", "bmp"])
def test_what_is_no_image_is_refused(image: np.ndarray, cut: str) -> None:
    png = encode(image, "png", PARAMETERS)
    bmp = io.BytesIO()
    Image.fromarray(image).save(bmp, "bmp")
    data: dict[str, Any] = {
        "text": b"hello",
        "empty": b"",
        "half": png[: len(png) // 2],
        "npy": encode(image, "npy"),
        "bmp": bmp.getvalue(),
    }
    with pytest.raises(InvalidInput, match="not a PNG, JPEG, WebP or GIF"):
        read_parameters(data[cut])


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (5, (2, 3)), (64, (8, 8))]
)
def test_grid_is_nearly_square_and_leaves_white_cells(count: int, shape: tuple[int, int]) -> None:
    rows, columns = grid_shape(count)
    assert (rows, columns) == shape
    images = np.arange(count * 6 * 4 * 3, dtype=np.uint8).reshape(count, 6, 4, 3)
    picture = grid(images)
    assert picture.shape == (rows * 6, columns * 4, 3)
    cells = picture.reshape(rows, 6, columns, 4, 3).swapaxes(1, 2).reshape(-1, 6, 4, 3)
    assert np.array_equal(cells[:count], images)
    assert (cells[count:] == 255).all()


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_largest_side_can_be_encoded_and_one_more_cannot(image_format: Format) -> None:
    side_px = MAX_SIDE_PX[image_format]
    encode(np.zeros((1, side_px, 3), np.uint8), image_format)
    with pytest.raises((OSError, ValueError)):
        encode(np.zeros((1, side_px + 1, 3), np.uint8), image_format)


def test_png_text_behind_the_pixels_is_found(image: np.ndarray) -> None:
    png = encode(image, "png", PARAMETERS)
    start = png.index(b"iTXt") - 4
    stop = start + 12 + int.from_bytes(png[start : start + 4])
    end = png.index(b"IEND") - 4
    moved = png[:start] + png[stop:end] + png[start:stop] + png[end:]
    assert np.array_equal(decode_png(moved), image)
    assert read_parameters(moved) == PARAMETERS
