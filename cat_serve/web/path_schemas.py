"""What may be asked of /interpolate: key frames, and the way between them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cat_serve.animation import MAX_FPS, AnimationFormat
from cat_serve.interpolation import MIN_KEYS, Curve
from cat_serve.latents import MAX_SEED
from cat_serve.web import schemas

MAX_KEYS = 64
DEFAULT_FRAMES = 32
DEFAULT_FPS = 16
OF_KEYS = ("class", "seed")
SEVERAL = f"; one for all key frames, or one for each of at most {MAX_KEYS}"

ACCEPTED = {
    "class": schemas.ACCEPTED["class"] + SEVERAL,
    "seed": schemas.ACCEPTED["seed"] + SEVERAL,
    "frames": f"an integer from {MIN_KEYS} to the server's limit, which /models tells",
    "fps": f"an integer from 1 to {MAX_FPS['webp']}, for gif to {MAX_FPS['gif']}",
    "interpolation": "'slerp' or 'lerp'",
    "loop": "true or false",
    "truncation_psi": schemas.ACCEPTED["truncation_psi"],
    "format": "'webp', 'gif' or 'zip'",
    "model": schemas.ACCEPTED["model"],
}


def accepted(most_frames: int) -> dict[str, str]:
    """Return what each parameter accepts on a server with this limit."""
    if most_frames < MIN_KEYS:
        return {**ACCEPTED, "frames": "no number: a queue of one image holds no animation"}
    return {**ACCEPTED, "frames": f"an integer from {MIN_KEYS} to {most_frames}"}


def _as_list(value: object) -> object:
    return value if isinstance(value, list) or value is None else [value]


ClassOfKey = Annotated[
    schemas.ClassText, Field(min_length=1, max_length=schemas.MAX_NAME_CHARACTERS)
]
SeedOfKey = Annotated[int, schemas.INTEGER, Field(ge=0, le=MAX_SEED)]


def _true_or_false(value: object) -> object:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise ValueError("neither true nor false")
    return value


class InterpolateQuery(BaseModel):
    """Key frames and the way between them, in the query: `class=7&class=9&seed=1`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_: Annotated[list[ClassOfKey] | None, BeforeValidator(_as_list)] = Field(
        None,
        alias="class",
        min_length=1,
        max_length=MAX_KEYS,
        description="**Required.** One class for all key frames, or one for each; by index or name, or as a mixture.",
        examples=[["7", "9"]],
    )
    seed: Annotated[list[SeedOfKey] | None, BeforeValidator(_as_list)] = Field(
        None,
        min_length=1,
        max_length=MAX_KEYS,
        description="One seed for all key frames, or one for each. If absent, one is drawn.",
        examples=[[1, 2]],
    )
    frames: Annotated[int, schemas.INTEGER] = Field(
        DEFAULT_FRAMES,
        ge=MIN_KEYS,
        description="Of the whole animation. Every key frame is one of them; the others lie evenly between.",
    )
    fps: Annotated[int, schemas.INTEGER] = Field(
        DEFAULT_FPS, ge=1, le=MAX_FPS["webp"], description="Frames a second; of a gif at most 50."
    )
    interpolation: Curve = Field(
        "slerp",
        description="Of the latents: `slerp` on a great circle, which keeps them typical; `lerp` in a straight line.",
    )
    loop: Annotated[bool, BeforeValidator(_true_or_false)] = Field(
        False, description="Go back to the first key frame, and play for ever; else once."
    )
    truncation_psi: Annotated[float, schemas.REAL] = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    format: AnimationFormat = Field(
        "webp", description="`webp` is lossless, `gif` has a palette, `zip` holds one PNG a frame."
    )
    model: str | None = Field(None, min_length=1, max_length=schemas.MAX_NAME_CHARACTERS)


class InterpolateParameters(InterpolateQuery):
    """Key frames and the way between them, as a JSON body."""

    model_config = ConfigDict(strict=True, json_schema_extra={
        "examples": [{"class": 7, "seed": [1, 2], "frames": 48, "loop": True},
                     {"class": ["sneaker", "ankle boot"], "seed": 1, "fps": 24, "format": "gif"}],
    })  # fmt: skip
