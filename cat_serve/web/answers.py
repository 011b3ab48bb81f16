"""From pixels to the body of an answer: an image, a grid, JSON or a zip. Nothing in it depends on when it is made."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cat_serve.errors import InvalidInput
from cat_serve.images import (
    MAX_SIDE_PX,
    MEDIA_TYPES,
    Format,
    encode,
    encode_npy,
    grid,
    grid_shape,
)
from cat_serve.mixtures import class_of, class_text
from cat_serve.seeds import as_range, seeds_text
from cat_serve.wanted import ImageRequest

Form = Literal["image", "json", "zip", "grid"]

FORMS: tuple[Form, ...] = get_args(Form)
ZIP_MEDIA_TYPE = "application/zip"
JSON_MEDIA_TYPE = "application/json"
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX, READABLE = 3, 0o644 << 16
MAX_Z_IN_FILE = 1024  # numbers; EXIF holds 64 KiB


class Answer(NamedTuple):
    """A body and what it is."""

    content: bytes
    media_type: str


def choose_form(form: Form | None, image_format: Format, n: int) -> Form:
    """Return the form of an answer with `n` images: a grid of several unless something else was asked.

    Raises:
        InvalidInput: one image file was asked for, and there are several images (`bad_response`).
    """
    if form is None:
        return "image" if n == 1 else "grid"
    if form == "image" and n > 1 and image_format != "npy":
        raise InvalidInput(
            f"response 'image' is one image, and n is {n}.",
            code="bad_response",
            hint="use response=grid (one picture), zip (files), json (base64), or format=npy (one array)",
            parameter="response",
            got=form,
            accepted="'grid', 'zip' or 'json' if n is more than 1",
        )
    return form


def require_fits(asked: ImageRequest, image_format: Format, form: Form) -> None:
    """Refuse a picture that is larger than its format can hold.

    Raises:
        InvalidInput: `bad_format`, saying how large the picture would be.
    """
    height, width = asked.model.artefact.manifest.image_size
    rows, columns = grid_shape(asked.n) if form == "grid" else (1, 1)
    limit_px = MAX_SIDE_PX.get(image_format)
    if limit_px is not None and max(rows * height, columns * width) > limit_px:
        raise InvalidInput(
            f"The picture would have {columns * width} x {rows * height} px, and {image_format} holds "
            f"{limit_px} at most.",
            code="bad_format",
            hint="use format=png, response=zip, or fewer images",
            parameter="format",
            got=image_format,
            accepted="'png' or 'npy' for a picture of this size",
        )


def answer(asked: ImageRequest, pixels: np.ndarray, image_format: Format, form: Form) -> Answer:
    """Encode uint8 [n, H, W, 3] as it was asked for."""
    if form == "json":
        return Answer(_json(asked, pixels, image_format), JSON_MEDIA_TYPE)
    if form == "zip":
        return Answer(_zip(asked, pixels, image_format), ZIP_MEDIA_TYPE)
    media_type = MEDIA_TYPES[image_format]
    if form == "image" and asked.n > 1:
        return Answer(encode_npy(pixels), media_type)
    return Answer(encode(grid(pixels), image_format, facts(asked)), media_type)


def facts(asked: ImageRequest, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Return what a file says of itself: how to make its images, which have `seeds`, by default all of the request."""
    stage = {} if asked.stage is None else {"stage": asked.stage}
    return {
        "model": asked.model.name,
        "version": asked.model.artefact.version,
        "class": class_of(asked.mixture),
        "class_name": _class_name(asked),
        **_source(asked, asked.seeds if seeds is None else seeds),
        "truncation_psi": asked.truncation_psi,
        **stage,
    }


def _class_name(asked: ImageRequest) -> str:
    names = asked.model.classes.names
    if asked.class_id is not None:
        return names[asked.class_id]
    return " + ".join(f"{share:.3g} {names[index]}" for index, share in asked.mixture.items())


def _source(asked: ImageRequest, seeds: Sequence[int]) -> dict[str, Any]:
    """Return where the latents came from, in the parameters of a request."""
    if asked.z is not None:
        known = {"z_sha256": asked.z_sha256}
        return {**known, "z": shortest(asked.z)} if asked.z.size <= MAX_Z_IN_FILE else known
    if isinstance(seeds := as_range(seeds), range):
        return {"seed": seeds[0], "n": len(seeds)}
    return {"seeds": seeds_text(seeds)}


def shortest(z: np.ndarray) -> Any:
    """Return float32 values as lists of the shortest numbers that become the same float32."""
    if z.ndim > 1:
        return [shortest(part) for part in z]
    return [float(str(value)) for value in z]


def file_name(asked: ImageRequest, seed: int | None, image_format: Format) -> str:
    """Return the name of one image in a zip."""
    classes = class_text(asked.mixture).replace(":", "x").replace(",", "+")
    stage = "" if asked.stage is None else f"_stage-{asked.stage}"
    return f"{asked.model.name}_class-{classes}_{_source_name(asked, seed)}{stage}.{image_format}"


def _source_name(asked: ImageRequest, seed: int | None) -> str:
    return f"seed-{seed}" if asked.z_sha256 is None else f"z-{asked.z_sha256[:12]}"


def _files(
    asked: ImageRequest, pixels: np.ndarray, image_format: Format
) -> list[tuple[int | None, bytes]]:
    """Return the file of every image, with its seed."""
    if asked.z is not None:
        return [(None, encode(pixels[0], image_format, facts(asked)))]
    return [
        (seed, encode(image, image_format, facts(asked, range(seed, seed + 1))))
        for seed, image in zip(asked.seeds, pixels, strict=True)
    ]


def _json(asked: ImageRequest, pixels: np.ndarray, image_format: Format) -> bytes:
    images = [
        {"seed": seed, "base64": base64.b64encode(data).decode("ascii")}
        for seed, data in _files(asked, pixels, image_format)
    ]
    media_type = MEDIA_TYPES[image_format]
    content = facts(asked)
    return json.dumps({**content, "media_type": media_type, "images": images}).encode()


def _zip(asked: ImageRequest, pixels: np.ndarray, image_format: Format) -> bytes:
    """Store the files; they are compressed already, and a fixed date keeps equal requests equal."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for seed, data in _files(asked, pixels, image_format):
            entry = zipfile.ZipInfo(file_name(asked, seed, image_format), ZIP_EPOCH)
            entry.create_system, entry.external_attr = UNIX, READABLE
            archive.writestr(entry, data)
    return stream.getvalue()
