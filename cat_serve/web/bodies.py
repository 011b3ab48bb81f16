"""What is answered in JSON, declared once for writing it and for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cat_serve.web.problems import PROBLEMS
from cat_serve.web.schemas import ACCEPTED


class ClassEntry(BaseModel):
    index: int
    name: str


class ModelClasses(BaseModel):
    """The classes of one model."""

    model: str
    version: str
    default: bool = Field(description="whether requests that name no model get this one")
    classes: list[ClassEntry]


class ClassesAnswer(BaseModel):
    models: list[ModelClasses]


class EncodedImage(BaseModel):
    seed: int | None = Field(description="null if it was made from an explicit z")
    base64: str = Field(description="a file of `media_type`")


class ImagesAnswer(BaseModel):
    """What `response=json` gives: the parameters that the images also carry themselves, and the images."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={
        "examples": [{
            "model": "fashion-32", "version": "0123456789ab", "class": 9, "class_name": "ankle boot",
            "seed": 1, "n": 2, "truncation_psi": 1.0, "media_type": "image/png",
            "images": [{"seed": 1, "base64": "iVBORw0KGgo..."}, {"seed": 2, "base64": "iVBORw0KGgo..."}],
        }],
    })  # fmt: skip

    model: str
    version: str
    class_: int | str = Field(alias="class", description="index, or mixture")
    class_name: str
    seed: int | None = Field(None, description="of the first image; image i has this + i")
    n: int | None = Field(None, description="beside `seed`")
    seeds: str | None = Field(
        None, description="instead of `seed` and `n`, if they are not in a row"
    )
    z_sha256: str | None = Field(None, description="instead of a seed, of an explicit z")
    z: list[Any] | None = Field(None, description="the explicit z, if it has at most 1,024 numbers")
    truncation_psi: float
    stage: int | None = Field(None, description="if it is not the last one")
    media_type: str = Field(description="of every image")
    images: list[EncodedImage]


class ModelFile(BaseModel):
    """One file of a model; what is null does not concern it."""

    sha256: str
    size_bytes: int
    precision: str | None = None
    decoder_precision: str | None = None
    determinism: str | None = None


class ModelLimits(BaseModel):
    """How much this server takes on."""

    max_images_per_request: int = Field(description="largest `n`")
    max_frames_per_request: int = Field(description="largest `frames` of /interpolate")
    max_batch: int = Field(description="images in one forward pass")
    max_queued_images: int = Field(description="images that may wait; beyond it 429")
    deadline_ms: float | None = Field(
        description="milliseconds that a request has which sends no `X-Deadline-Ms`; null: no limit"
    )


class ModelCard(BaseModel):
    """What is known of a model; parity and source come from its manifest as they are."""

    name: str
    version: str = Field(description="first 12 hex digits of the manifest's SHA-256")
    default: bool
    num_classes: int
    image_size: tuple[int, int] = Field(description="height, width in pixels")
    z_shape: list[int]
    backend: str | None = Field(description="what computes it; null while it is not loaded yet")
    precision: str | None = Field(description="of what is run; null while it is not loaded yet")
    determinism: Literal["bytes", "latent"] = Field(
        description="`latent` also while the model is not loaded yet"
    )
    truncation_psi: dict[str, Any] = Field(description="what the parameter means for this model")
    stages: int = Field(description="stages whose images can be had; 0: none")
    parity: dict[str, Any]
    source: dict[str, Any]
    files: dict[str, ModelFile] = Field(description="every file that is executed or compared")
    parameters: dict[str, str] = Field(description="what each parameter of /generate accepts")
    limits: ModelLimits


class ModelsAnswer(BaseModel):
    models: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "ready"]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow", json_schema_extra={
        "examples": [{
            "type": "urn:cat-serve:problem:bad_seed", "title": PROBLEMS["bad_seed"].title,
            "status": 422, "detail": f"seed '-1' is not {ACCEPTED['seed']}.", "code": "bad_seed",
            "parameter": "seed", "got": "-1", "accepted": ACCEPTED["seed"],
        }],
    })  # fmt: skip

    type: str
    title: str
    status: int
    detail: str = Field(description="what was wrong with this request")
    code: str = Field(description="stable", json_schema_extra={"enum": list(PROBLEMS)})
    hint: str | None = Field(None, description="how to repair it")
    got: Any = Field(None, description="the value that was sent")
    accepted: Any = Field(None, description="the values that are accepted")
    request_id: str | None = None
