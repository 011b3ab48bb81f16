"""What a request to the friendly model asks for: from its tensors to rows that are checked one by one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cat_serve.classes import Classes
from cat_serve.contract import CLASS_ID, TRUNCATION_PSI, Batch
from cat_serve.errors import (
    InvalidInput,
    UnknownClass,
)
from cat_serve.images import Format
from cat_serve.latents import MAX_SEED, latents_from_seeds, seed_range
from cat_serve.triton_models.catalogue import Catalogue
from cat_serve.triton_models.tensors import (
    CLASS,
    ENCODED_FORMATS,
    FORMAT,
    MODEL,
    SEED,
)
from cat_serve.wanted import ImageRequest, ServedModel

MAX_NAME_CHARACTERS = 100
DEFAULT_FORMAT: Format = "png"
DEFAULT_PSI = np.float32(1)

Columns = Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Asked:
    """What one request asks for.

    Attributes:
        images: one request of one image for each row, all of one model.
        formats: of each row's encoded image.
    """

    images: tuple[ImageRequest, ...]
    formats: tuple[Format, ...]

    @property
    def model(self) -> ServedModel:
        return self.images[0].model

    @property
    def seeds(self) -> list[int]:
        return [image.seeds[0] for image in self.images]

    def batches(self) -> list[Batch]:
        """Return the rows as the engine takes them, none longer than it takes at once."""
        manifest = self.model.artefact.manifest
        parts = [
            self.images[start : start + manifest.max_batch]
            for start in range(0, len(self.images), manifest.max_batch)
        ]
        return [
            Batch(
                latents_from_seeds([image.seeds[0] for image in part], manifest.z_shape),
                np.array([image.class_id for image in part], dtype=np.int64),
                np.array([image.truncation_psi for image in part], dtype=np.float32),
            )
            for part in parts
        ]


def parse(columns: Columns, catalogue: Catalogue) -> Asked:
    """Turn the tensors of one request, each [B] or None if it was left out, into its rows.

    Seeds that were left out are drawn.

    Raises:
        InvalidInput: a value that is not accepted; says which row, and what is.
        UnknownModel: there is no such model.
        UnknownClass: the model has no such class.
    """
    classes, rows = _classes(columns)
    model = catalogue.find(_one_model(columns, catalogue.default))
    others = [other.classes for other in catalogue.models.values()]
    psi = columns.get(TRUNCATION_PSI)
    images, formats = [], []
    for row in range(rows):
        image = ImageRequest.of(
            model=model,
            class_id=class_index(model.classes, classes[row], others),
            seed=_seed(columns.get(SEED), row),
            truncation_psi=truncation_psi(DEFAULT_PSI if psi is None else psi[row]),
        )
        images.append(image)
        formats.append(_format(columns.get(FORMAT), row))
    return Asked(tuple(images), tuple(formats))


def class_index(classes: Classes, text: str, others: Sequence[Classes]) -> int:
    """Return the index that `text` means, as over HTTP.

    Raises:
        InvalidInput: it is empty or far too long, or two classes share the name.
        UnknownClass: the model has no such class.
    """
    if not 1 <= len(text) <= MAX_NAME_CHARACTERS:
        raise InvalidInput(
            f"A class of {len(text)} characters is neither an index nor a name.",
            code="bad_class",
            hint=f"1 to {MAX_NAME_CHARACTERS} characters; {classes.describe()}",
        )
    try:
        return classes.index_of(text, others)
    except UnknownClass as error:
        if (
            error.details.get("suggestions") == []
        ):  # the hint would name a page that Triton does not have
            error.hint = f"all digits are an index, from 0 to {len(classes) - 1}"
        raise


def truncation_psi(value: np.float32) -> float:
    """Return the shortest decimal that is this float32: 0.7 stays 0.7, as images say of themselves over HTTP.

    Raises:
        InvalidInput: it is not from 0 to 1.
    """
    psi = float(str(np.float32(value)))
    if not 0 <= psi <= 1:
        raise InvalidInput(
            f"truncation_psi {psi} is not a number from 0 to 1.",
            code="bad_truncation_psi",
            hint="1 is off, 0 the mean of the class",
        )
    return psi + 0.0  # -0.0 is 0


def _classes(columns: Columns) -> tuple[list[str], int]:
    """Return what each row says of its class, and the number of rows."""
    names, ids = columns.get(CLASS), columns.get(CLASS_ID)
    if (names is None) == (ids is None):
        raise InvalidInput(
            f"A request has one of {CLASS} and {CLASS_ID}; this one has {'both' if ids is not None else 'neither'}.",
            code="missing_parameter" if ids is None else "bad_class",
            hint=f"{CLASS} is a string, an index in digits or a name; {CLASS_ID} is an integer",
        )
    if names is not None:
        return [_text(value, CLASS) for value in names], len(names)
    assert ids is not None
    return [str(int(value)) for value in ids], len(ids)


def _one_model(columns: Columns, default: str) -> str:
    names = columns.get(MODEL)
    if names is None:
        return default
    wanted = list(dict.fromkeys(_text(value, MODEL) for value in names))
    if len(wanted) > 1:
        raise InvalidInput(
            f"The rows of a request name {len(wanted)} models: {', '.join(wanted)[:MAX_NAME_CHARACTERS]}.",
            code="bad_model",
            hint="send one request for each model; they are batched together all the same",
        )
    return wanted[0]


def _seed(seeds: np.ndarray | None, row: int) -> int:
    if seeds is None:
        return secrets.randbelow(MAX_SEED + 1)
    return seed_range(int(seeds[row]), 1).start


def _format(formats: np.ndarray | None, row: int) -> Format:
    if formats is None:
        return DEFAULT_FORMAT
    wanted = _text(formats[row], FORMAT)
    for known in ENCODED_FORMATS:
        if wanted == known:
            return known
    raise InvalidInput(
        f"There is no format {wanted[:MAX_NAME_CHARACTERS]!r}.",
        code="bad_format",
        hint=f"one of {', '.join(ENCODED_FORMATS)}; the pixels themselves are the output `image`",
    )


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"The input {name} is not UTF-8 text.", code=f"bad_{name}", hint="encode it as UTF-8"
        ) from error
