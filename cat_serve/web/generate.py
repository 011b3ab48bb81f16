"""POST and GET /generate: parse, ask the service, encode; and stop when nobody waits for the answer any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from cat_serve.deadlines import Deadline
from cat_serve.errors import InvalidInput
from cat_serve.images import MEDIA_TYPES, Format
from cat_serve.mixtures import class_text
from cat_serve.seeds import seeds_text
from cat_serve.surface import GeneratedImages, ImageService
from cat_serve.wanted import ImageRequest
from cat_serve.web import caching, schemas
from cat_serve.web.addresses import permalink
from cat_serve.web.answers import (
    JSON_MEDIA_TYPE,
    ZIP_MEDIA_TYPE,
    Form,
    answer,
    choose_form,
    require_fits,
)
from cat_serve.web.asking import resolve
from cat_serve.web.dependencies import (
    TheDeadline,
    TheService,
    only,
    problems,
    require_one_place,
)
from cat_serve.web.making import made_and_encoded, server_timing
from cat_serve.web.observed import CLIENT_GONE

router = APIRouter()

IMAGE_HEADERS = {
    "X-Seed": "seed of the first image; image i has this seed + i, unless there is `X-Seeds`",
    "X-Seeds": "all seeds, as in the parameter `seeds`, if they are not in a row",
    "X-Z-Sha256": "instead of a seed: SHA-256 of the explicit `z` as little-endian float32",
    "X-Model": "name@version of the model",
    "X-Class": "class index, or the mixture",
    "X-Determinism": "`bytes` if the engine gives the same bytes in any batch, else `latent`",
    "X-Permalink": "address of the same bytes, of one image of one class and seed",
    "X-Request-Id": "the request's id",
    "Server-Timing": "milliseconds in the queue, in the engine and in the encoder",
}
CACHE_HEADERS = {
    "ETag": "of model version and all parameters; weak if `X-Determinism` is `latent`",
    "Cache-Control": "how long the answer may be kept",
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def described(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return headers as the OpenAPI document has them."""
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


ANSWER: dict[str, Any] = {
    "description": "One image, a grid, or with `response` a zip or JSON. PNG, JPEG and WebP carry their "
    "parameters as metadata; npy is uint8 [H, W, 3], and with `response=image` and n > 1 uint8 [n, H, W, 3].",
    "content": {
        **dict.fromkeys((*MEDIA_TYPES.values(), ZIP_MEDIA_TYPE), BINARY),
        JSON_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ImagesAnswer"}},
    },
    "headers": described(IMAGE_HEADERS),
}
KEPT_ANSWER = {**ANSWER, "headers": described(IMAGE_HEADERS | CACHE_HEADERS)}
NOT_MODIFIED: dict[str, Any] = {
    "description": "The client has this answer already: `If-None-Match` named its ETag. Nothing was computed.",
    "headers": described(CACHE_HEADERS),
}
ONLY_IN_QUERY = tuple(name for name in schemas.ACCEPTED if name != "z")
HINTS = {"z": "send z in a JSON body, to POST /generate"}
PROBLEMS = problems(401, 404, 413, 422, 429, 500, 502, 503, 504)


@router.post(
    "/generate",
    response_class=Response,
    responses={200: ANSWER, **PROBLEMS},
    dependencies=[only(*ONLY_IN_QUERY, hints=HINTS)],
    summary="Generate images of a class",
)
async def generate(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    query: Annotated[schemas.GenerateQuery, Query()],
    body: Annotated[
        schemas.GenerateParameters | None, Body(openapi_examples=schemas.EXAMPLES)
    ] = None,
) -> Response:
    """Make images of a class or a mixture of classes, each in one forward pass.

    Give the parameters in the query or as a JSON body, not both. An image is a function of model version,
    class, seed, `truncation_psi` and `stage`, whatever is made beside it: equal requests get equal bytes.
    """
    require_one_place(request, body)
    parameters = body or query
    asked = resolve(service, parameters)
    form = choose_form(parameters.response, parameters.format, asked.n)
    return await made(request, service, deadline, asked, parameters.format, form)


@router.get(
    "/generate",
    response_class=Response,
    responses={200: KEPT_ANSWER, 304: NOT_MODIFIED, **PROBLEMS},
    dependencies=[only(*ONLY_IN_QUERY, hints=HINTS)],
    summary="Get images of a class by seed",
)
async def get(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    query: Annotated[schemas.GenerateQuery, Query()],
) -> Response:
    """Make the same images as POST /generate; `seed` or `seeds` is required.

    The `ETag` is of model version and all parameters. A request with `If-None-Match` of it gets a 304 at once.
    """
    if query.seed is None and query.seeds is None:
        raise InvalidInput(
            "GET /generate wants a seed: an address must mean the same image every time.",
            code="missing_parameter",
            hint="add seed=1, for example; POST /generate draws one",
            parameter="seed",
            accepted=schemas.ACCEPTED["seed"],
        )
    asked = resolve(service, query)
    form = choose_form(query.response, query.format, asked.n)
    keep = caching.revalidated(request)
    return await kept(request, service, deadline, asked, query.format, form, keep)


async def kept(
    request: Request,
    service: ImageService,
    deadline: Deadline,
    asked: ImageRequest,
    image_format: Format,
    form: Form,
    keep: str,
) -> Response:
    """Answer with an ETag and `keep` as Cache-Control, or with 304 to a client that has the answer already."""
    require_fits(asked, image_format, form)
    tag = caching.entity_tag(service, asked, image_format, form)
    if (unchanged := caching.not_modified(request, tag, keep)) is not None:
        return unchanged
    response = await made(request, service, deadline, asked, image_format, form)
    if tag is not None:
        response.headers.update({"ETag": tag, "Cache-Control": keep})
    return response


async def made(
    request: Request,
    service: ImageService,
    deadline: Deadline,
    asked: ImageRequest,
    image_format: Format,
    form: Form,
) -> Response:
    """Make the images and encode them as they were asked for."""
    require_fits(asked, image_format, form)
    done = await made_and_encoded(
        request, service, deadline, asked,
        lambda images: answer(asked, images.pixels, image_format, form),
    )  # fmt: skip
    if done is None:
        return Response(status_code=CLIENT_GONE)
    images, (content, media_type) = done
    own = headers(asked, images)
    if form in ("image", "grid") and (address := permalink(asked, image_format)) is not None:
        own["X-Permalink"] = request.scope.get("root_path", "") + address
    return Response(content, media_type=media_type, headers=own)


def headers(asked: ImageRequest, images: GeneratedImages) -> dict[str, str]:
    """Return the headers of an answer."""
    return {
        **_source(asked),
        "X-Model": asked.model.label,
        "X-Class": class_text(asked.mixture),
        "X-Determinism": images.determinism,
        "Server-Timing": server_timing(images),
    }


def _source(asked: ImageRequest) -> dict[str, str]:
    """Return the headers that say where the latents came from."""
    if asked.z_sha256 is not None:
        return {"X-Z-Sha256": asked.z_sha256}
    first = {"X-Seed": str(asked.seed)}
    in_a_row = isinstance(asked.seeds, range)
    return first if in_a_row else {**first, "X-Seeds": seeds_text(asked.seeds)}
