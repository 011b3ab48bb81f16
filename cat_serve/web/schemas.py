"""What a request may say, declared once for parsing, checking and the OpenAPI document."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi.openapi.models import Example
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cat_serve import mixtures, seeds
from cat_serve.images import Format
from cat_serve.latents import MAX_SEED
from cat_serve.web.answers import Form

MAX_NAME_CHARACTERS = 100

# Formats of strings in the OpenAPI document; cat_serve.web.openapi says what a server has of them.
CLASS_FORMAT = "class"
SEEDS_FORMAT = "seed-ranges"

# What each parameter of /generate accepts, in the words that its errors use.
ACCEPTED = {
    "class": f"a class index or name of at most {MAX_NAME_CHARACTERS} characters, or {mixtures.ACCEPTED}",
    "seed": f"an integer from 0 to {MAX_SEED}",
    "truncation_psi": "a number from 0 to 1",
    "n": "an integer from 1 to the server's limit, which /models tells",
    "seeds": seeds.accepted(),
    "z": "lists of numbers from -1000 to 1000 in the model's z_shape, which /models tells, in a JSON body",
    "stage": "an integer from 1 to the model's number of stages, which /models tells",
    "format": "'png', 'jpeg', 'webp' or 'npy'",
    "response": "'image', 'json', 'zip' or 'grid'",
    "model": f"a model name of at most {MAX_NAME_CHARACTERS} characters",
}


def accepted(max_images_per_request: int) -> dict[str, str]:
    """Return what each parameter accepts on a server with this limit."""
    return {
        **ACCEPTED,
        "n": f"an integer from 1 to {max_images_per_request}",
        "seeds": seeds.accepted(max_images_per_request),
    }


_INTEGER = re.compile(r"[0-9]{1,100}")
_REAL = re.compile(r"-?([0-9]{1,100}\.?[0-9]{0,100}|\.[0-9]{1,100})([eE][+-]?[0-9]{1,3})?")


def _integer(value: object) -> object:
    """Take ASCII digits where all is text, and what JSON calls an integer; nothing else, such as true or 1_000."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError("not an integer")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _real(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    if isinstance(value, str) and not _REAL.fullmatch(value):
        raise ValueError("not a number")
    return value


INTEGER = BeforeValidator(_integer)
REAL = BeforeValidator(_real)


def _index_as_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return str(int(value)) if value == value // 1 else value  # 9.0 is an integer in JSON


ClassText = Annotated[
    str,
    BeforeValidator(_index_as_text),
    WithJsonSchema({"type": "string", "format": CLASS_FORMAT, "maxLength": MAX_NAME_CHARACTERS}),
]


class GenerateQuery(BaseModel):
    """Parameters of one image or several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_: ClassText | None = Field(
        None,
        alias="class",
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="**Required**, here or in the body. All digits: the class index. Anything else: a "
        "class name; case does not matter, and spaces, underscores and hyphens are alike. "
        "`7:0.7,9:0.3`: a mixture of up to four classes by index, with weights that sum to 1.",
        examples=["7", "ankle boot", "7:0.7,9:0.3"],
    )
    seed: Annotated[int, INTEGER] | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same seed gives the same image. If absent, one is drawn and returned in "
        "`X-Seed`.",
        examples=[1],
    )
    truncation_psi: Annotated[float, REAL] = Field(
        1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="1: as trained; towards 0: nearer to the mean of the class, 0: the mean itself.",
        examples=[0.7],
    )
    n: Annotated[int, INTEGER] = Field(
        1,
        ge=1,
        description="Number of images; image i has `seed` + i. `/models` tells the largest.",
        examples=[16],
    )
    seeds: str | None = Field(
        None,
        min_length=1,
        max_length=seeds.MAX_CHARACTERS,
        description="Instead of `seed` and `n`: one image for each of these seeds and ranges of seeds.",
        examples=["0-9,42"],
        json_schema_extra={"format": SEEDS_FORMAT},
    )
    stage: Annotated[int, INTEGER] | None = Field(
        None,
        ge=1,
        description="Show what the generator had after this stage. The last one, the default, is the image. "
        "`/models` tells how many a model has.",
        examples=[1],
    )
    format: Format = Field(
        "png",
        description="Of every image, or of the grid. `png`, `webp` and `npy` (an array for NumPy) are "
        "lossless, `jpeg` has quality 90.",
        examples=["webp"],
    )
    response: Form | None = Field(
        None,
        description="`image`: one image, the default for n = 1; with `format=npy` also several, as one array "
        "[n, H, W, 3]. `grid`: all in one picture, row by row, the default for n > 1. `zip`: one file per "
        "image. `json`: base64, with seeds.",
        examples=["zip"],
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="Name of the model, see `/models`; by default the server's default model.",
        examples=["fashion-32"],
    )


class GenerateParameters(GenerateQuery):
    """Parameters of one image or several, as a JSON body."""

    model_config = ConfigDict(strict=True)  # a number in quotes is a text

    z: list[Any] | None = Field(
        None,
        description="Instead of a seed: the latent itself, as lists of numbers in the model's `z_shape`. One image; "
        "its answer has `X-Z-Sha256` instead of `X-Seed`.",
    )


# Of bodies of POST /generate, by name.
EXAMPLES: dict[str, Example] = {
    name: {"summary": summary, "value": value}
    for name, summary, value in (
        ("image", "One image", {"class": 7, "seed": 1, "truncation_psi": 0.7}),
        ("grid", "Sixteen in one picture", {"class": "ankle boot", "seed": 1, "n": 16, "format": "webp"}),
        ("mixture", "A mixture of two classes", {"class": "7:0.7,9:0.3", "seed": 1}),
        ("seeds", "Ranges of seeds, as files", {"class": 7, "seeds": "0-3,42", "response": "zip"}),
        ("json", "Images in JSON", {"class": 7, "seed": 1, "n": 2, "response": "json"}),
        ("stage", "The first stage", {"class": 7, "seed": 1, "stage": 1}),
        ("z", "An explicit latent of 64 numbers", {"class": 7, "z": [0.0, 1.0] * 32}),
    )
}  # fmt: skip
