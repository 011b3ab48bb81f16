"""What OpenAI's Images API asks and answers, in this service's terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cat_serve.latents import MAX_SEED
from cat_serve.web import schemas

OWNER = "cat-serve"
NO_EFFECT = f"a text of at most {schemas.MAX_NAME_CHARACTERS} characters, which is not used"
EXAMPLE: dict[str, Any] = {"prompt": "ankle boot", "n": 1, "size": "auto", "seed": 1}

ACCEPTED = {
    "prompt": schemas.ACCEPTED["class"],
    "n": schemas.ACCEPTED["n"],
    "size": "'auto' or the model's own size, WIDTHxHEIGHT",
    "response_format": "'b64_json', or 'url' for images of one class",
    "output_format": "'png', 'jpeg' or 'webp'",
    "model": schemas.ACCEPTED["model"],
    "seed": schemas.ACCEPTED["seed"],
    "truncation_psi": schemas.ACCEPTED["truncation_psi"],
    "background": "'auto' or 'opaque'",
    "moderation": "'auto' or 'low'",
    "quality": "'auto' or 'standard': there is one quality",
    "stream": "false",
    "user": NO_EFFECT,
    "safety_identifier": NO_EFFECT,
}


def accepted(max_images_per_request: int) -> dict[str, str]:
    """Return what each parameter accepts on a server with this limit."""
    return {**ACCEPTED, "n": schemas.accepted(max_images_per_request)["n"]}


Unused = Annotated[str | None, Field(max_length=schemas.MAX_NAME_CHARACTERS)]


def _no_number(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError("a number is not a boolean")  # Python's 0 equals False
    return value


class ImagesParameters(BaseModel):
    """What OpenAI's client sends. Null is the default of each; `seed` and `truncation_psi` go through `extra_body`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra={"examples": [EXAMPLE]})  # fmt: skip

    prompt: schemas.ClassText | None = Field(
        None,
        min_length=1,
        max_length=schemas.MAX_NAME_CHARACTERS,
        description="**Required.** A class: its name, or its index. There is no text encoder: a sentence is an error.",
    )
    model: str | None = Field(None, min_length=1, max_length=schemas.MAX_NAME_CHARACTERS)
    n: Annotated[int | None, schemas.INTEGER] = Field(None, ge=1, description="1 if absent")
    size: str | None = Field(
        None, max_length=schemas.MAX_NAME_CHARACTERS, description=ACCEPTED["size"]
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`b64_json` if absent; a `url` is the permanent address of the image here"
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="`png` if absent"
    )
    seed: Annotated[int | None, schemas.INTEGER] = Field(
        None, ge=0, le=MAX_SEED, description="drawn if absent; image i has `seed` + i"
    )
    truncation_psi: Annotated[float | None, schemas.REAL] = Field(
        None, ge=0, le=1, allow_inf_nan=False
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(
        None, description="nothing is moderated: only classes can be asked for"
    )
    quality: Literal["auto", "standard"] | None = None
    stream: Annotated[Literal[False] | None, BeforeValidator(_no_number)] = None
    user: Unused = Field(None, description="not used")
    safety_identifier: Unused = Field(None, description="not used")

    def as_generate(self) -> schemas.GenerateParameters:
        """Return the same request in the words of /generate."""
        given: dict[str, Any] = {
            "class": self.prompt,
            "model": self.model,
            "n": self.n,
            "format": self.output_format,
            "seed": self.seed,
            "truncation_psi": self.truncation_psi,
        }
        return schemas.GenerateParameters(**{k: v for k, v in given.items() if v is not None})


OutputFormat = Literal["png", "jpeg", "webp"]


class OpenAIImage(BaseModel):
    b64_json: str | None = Field(
        default=None, description="a file of `output_format`, which carries its parameters"
    )
    url: str | None = Field(default=None, description="the address of the same file, instead")
    revised_prompt: str = Field(description="the name of the class")
    seed: int


class ImagesResponse(BaseModel):
    """OpenAI's answer, and beside its members how to make the images again."""

    created: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    data: list[OpenAIImage]
    model: str = Field(description="name@version")
    truncation_psi: float
    determinism: Literal["bytes", "latent"]


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the model's manifest was written here")
    owned_by: str = OWNER


class OpenAIModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]
