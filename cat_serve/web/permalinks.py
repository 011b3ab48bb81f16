"""GET /images/{model}@{version}/{class}/{seed}.{format}: one image at an address that never means another."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from cat_serve.errors import InvalidInput
from cat_serve.images import Format
from cat_serve.latents import MAX_SEED
from cat_serve.wanted import ServedModel
from cat_serve.web import caching, schemas
from cat_serve.web.asking import resolve
from cat_serve.web.dependencies import TheDeadline, TheService, only
from cat_serve.web.generate import ANSWER, KEPT_ANSWER, NOT_MODIFIED, PROBLEMS, kept

router = APIRouter()

PATH = "/images/{model}@{version}/{class}/{seed}.{format}"
ACCEPTED = {
    "model": schemas.ACCEPTED["model"],
    "version": "the first 12 hex digits of the SHA-256 of the model's manifest, which /models tells",
    "class": "a class index",
    "seed": schemas.ACCEPTED["seed"],
    "format": schemas.ACCEPTED["format"],
    "truncation_psi": schemas.ACCEPTED["truncation_psi"],
    "stage": schemas.ACCEPTED["stage"],
}
IMAGE = {
    **KEPT_ANSWER,
    "description": "The image, the same bytes as of /generate.",
    "content": {
        name: content for name, content in ANSWER["content"].items() if "json" not in name and "zip" not in name
    },
}  # fmt: skip


@router.get(
    PATH,
    response_class=Response,
    responses={200: IMAGE, 304: NOT_MODIFIED, **PROBLEMS},
    dependencies=[only("truncation_psi", "stage")],
    summary="Get one image by its permanent address",
)
async def image(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    model: Annotated[str, Path(max_length=schemas.MAX_NAME_CHARACTERS, examples=["fashion-32"])],
    version: Annotated[str, Path(max_length=schemas.MAX_NAME_CHARACTERS)],
    class_id: Annotated[int, schemas.INTEGER, Path(alias="class", ge=0, examples=[7])],
    seed: Annotated[int, schemas.INTEGER, Path(ge=0, le=MAX_SEED, examples=[1])],
    image_format: Annotated[Format, Path(alias="format", examples=["png"])],
    truncation_psi: Annotated[
        float, schemas.REAL, Query(ge=0, le=1, allow_inf_nan=False, examples=[0.7])
    ] = 1.0,
    stage: Annotated[Annotated[int, schemas.INTEGER] | None, Query(ge=1, examples=[1])] = None,
) -> Response:
    """Make one image. Answers of /generate name this address in `X-Permalink`, where there is one.

    The version names the artefact, so the answer may be kept for ever. The address of a version that is not
    served is a 404, never another version's image.
    """
    served = service.model(model)
    require_version(served, version)
    parameters = schemas.GenerateQuery.model_validate({
        "class": str(class_id), "seed": seed, "truncation_psi": truncation_psi, "stage": stage,
        "model": model,
    })  # fmt: skip
    asked = resolve(service, parameters)
    keep = caching.immutable(request)
    return await kept(request, service, deadline, asked, image_format, "image", keep)


def require_version(served: ServedModel, version: str) -> None:
    """Refuse a version that is not the one that is served.

    Raises:
        InvalidInput: `unknown_version`.
    """
    if version != served.artefact.version:
        raise InvalidInput(
            f"The model {served.name} has no version {version!r} here.",
            code="unknown_version",
            hint="POST /generate makes an image of the version that is served",
            got=version,
            accepted=[served.artefact.version],
        )
