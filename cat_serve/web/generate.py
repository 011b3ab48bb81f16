"""POST /generate: parse, ask the service, encode; and stop when nobody waits for the answer any more."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Query, Request, Response

from cat_serve.errors import InvalidInput
from cat_serve.images import MEDIA_TYPES
from cat_serve.latents import MAX_SEED
from cat_serve.observation import current
from cat_serve.service import GeneratedImages, Service
from cat_serve.wanted import ImageRequest
from cat_serve.web import schemas
from cat_serve.web.answers import (
    JSON_MEDIA_TYPE,
    ZIP_MEDIA_TYPE,
    answer,
    choose_form,
    require_fits,
)
from cat_serve.web.dependencies import TheDeadline, TheService, only, problems
from cat_serve.web.observed import CLIENT_GONE

router = APIRouter()

IMAGE_HEADERS = {
    "X-Seed": "seed of the first image; image i has this seed + i",
    "X-Model": "name@version of the model",
    "X-Class": "class index",
    "X-Determinism": "`bytes` if the engine gives the same bytes in any batch, else `latent`",
    "X-Request-Id": "the request's id",
    "Server-Timing": "milliseconds in the queue, in the engine and in the encoder",
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWER: dict[str, Any] = {
    "description": "One image, a grid, or with `response` a zip or JSON. PNG, JPEG and WebP carry their "
    "parameters as metadata; npy is uint8 [H, W, 3], and with `response=image` and n > 1 uint8 [n, H, W, 3].",
    "content": {
        **dict.fromkeys((*MEDIA_TYPES.values(), ZIP_MEDIA_TYPE), BINARY),
        JSON_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ImagesAnswer"}},
    },
    "headers": {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in IMAGE_HEADERS.items()
    },
}


@router.post(
    "/generate",
    response_class=Response,
    responses={200: ANSWER, **problems(401, 404, 413, 422, 429, 500, 502, 503, 504)},
    dependencies=[only(*schemas.ACCEPTED)],
    summary="Generate images of a class",
)
async def generate(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    query: Annotated[schemas.GenerateParameters, Query()],
    body: Annotated[schemas.GenerateParameters | None, Body()] = None,
) -> Response:
    """Make `n` images of a class, each in one forward pass.

    Give the parameters in the query or as a JSON body, not both. An image is a function of model version,
    class, seed and `truncation_psi`, whatever is made beside it: equal requests get equal bytes.
    """
    if body is not None and request.query_params:
        raise InvalidInput(
            "There are parameters in the query and in the body.",
            code="query_and_body",
            hint="send all of them in one place",
            got=", ".join(dict(request.query_params)),
            accepted="the query or a JSON body",
        )
    parameters = body or query
    asked = resolve(service, parameters)
    form = choose_form(parameters.response, parameters.format, asked.n)
    require_fits(asked, parameters.format, form)
    images = await unless_gone(request, service.generate(asked, deadline))
    if images is None:
        return Response(status_code=CLIENT_GONE)
    observed = current()
    with observed.encoding():
        encoding = asyncio.to_thread(answer, asked, images.pixels, parameters.format, form)
        content, media_type = await deadline.hold(encoding, lambda: "encode")
    encode_ms = observed.encode_ms or 0.0
    return Response(content, media_type=media_type, headers=headers(asked, images, encode_ms))


def resolve(service: Service, parameters: schemas.GenerateParameters) -> ImageRequest:
    """Turn names into indices, draw the seed if none was given, and hold n to the limit."""
    if parameters.class_ is None:
        raise InvalidInput(
            "The parameter class is missing.",
            code="missing_parameter",
            hint="for example POST /generate?class=7",
            parameter="class",
            accepted=schemas.ACCEPTED["class"],
        )
    model = service.model(parameters.model)
    others = [other.classes for other in service.models.values()]
    n, limit = parameters.n, service.limits.max_images_per_request
    class_id = model.classes.index_of(parameters.class_, others)
    if n > limit:
        raise InvalidInput(
            f"n is {n}, and a request may have {limit} images.",
            code="bad_n",
            hint="send several requests; image i has seed + i",
            parameter="n",
            got=n,
            accepted=schemas.accepted(limit)["n"],
        )
    seed = secrets.randbelow(MAX_SEED + 2 - n) if parameters.seed is None else parameters.seed
    return ImageRequest.of(
        model=model,
        class_id=class_id,
        seed=seed,
        truncation_psi=parameters.truncation_psi + 0.0,  # -0.0 is 0
        n=n,
    )


def headers(asked: ImageRequest, images: GeneratedImages, encode_ms: float) -> dict[str, str]:
    """Return the headers of an answer."""
    timing = {"queue": images.queue_ms, "generate": images.generate_ms, "encode": encode_ms}
    return {
        "X-Seed": str(asked.seed),
        "X-Model": asked.model.label,
        "X-Class": str(asked.class_id),
        "X-Determinism": images.determinism,
        "Server-Timing": ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in timing.items()),
    }


T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work; if the client closes its connection before it is done, cancel it and return None."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    """Return when the connection is closed; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
