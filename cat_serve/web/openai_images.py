"""OpenAI's Images API: `POST /v1/images/generations` and `GET /v1/models`. The prompt is a class.

What this service cannot do is refused, never ignored; what cannot change an image (`user`) is read by nobody.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Body, Request, Response

from cat_serve.errors import InvalidInput
from cat_serve.images import encode
from cat_serve.manifest import MANIFEST_NAME
from cat_serve.surface import GeneratedImages
from cat_serve.wanted import ImageRequest, ServedModel
from cat_serve.web.addresses import permalink
from cat_serve.web.answers import JSON_MEDIA_TYPE, facts
from cat_serve.web.asking import given, resolve
from cat_serve.web.dependencies import TheDeadline, TheService, only, openai_problems
from cat_serve.web.generate import IMAGE_HEADERS, described, headers
from cat_serve.web.making import made_and_encoded
from cat_serve.web.observed import CLIENT_GONE
from cat_serve.web.openai_schemas import (
    ACCEPTED,
    ImagesParameters,
    ImagesResponse,
    OpenAIImage,
    OpenAIModel,
    OpenAIModels,
    OutputFormat,
)

router = APIRouter(tags=["OpenAI"])

GENERATIONS_PATH = "/v1/images/generations"


@router.post(
    GENERATIONS_PATH,
    response_model=ImagesResponse,
    responses={
        200: {"headers": described(IMAGE_HEADERS)},
        **openai_problems(400, 401, 404, 413, 429, 500, 502, 503, 504),
    },
    dependencies=[only()],
    summary="Generate images of a class, as OpenAI's clients ask for them",
)
async def generations(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    parameters: Annotated[ImagesParameters, Body()],
) -> Response:
    """Make `n` images of the class that `prompt` names; the same as `POST /generate`, and the same queue."""
    given("prompt", parameters.prompt, ACCEPTED, "a class, for example 'ankle boot' or '7'")
    model = service.model(parameters.model)
    require_size(model, parameters.size)
    asked = resolve(service, parameters.as_generate())
    image_format = parameters.output_format or "png"
    urls = urls_of(request, asked, image_format) if parameters.response_format == "url" else None
    done = await made_and_encoded(
        request, service, deadline, asked, lambda images: answer(asked, images, image_format, urls)
    )
    if done is None:
        return Response(status_code=CLIENT_GONE)
    images, content = done
    own = headers(asked, images)
    return Response(content, media_type=JSON_MEDIA_TYPE, headers=own)


@router.get("/v1/models", responses=openai_problems(400, 401), dependencies=[only()])
async def models(service: TheService) -> OpenAIModels:
    """List the models as OpenAI does; /models says much more of them."""
    return OpenAIModels(data=[_described(model) for model in service.models.values()])


@router.get("/v1/models/{model}", responses=openai_problems(400, 401, 404), dependencies=[only()])
async def model(service: TheService, model: str) -> OpenAIModel:
    """Describe one model as OpenAI does."""
    return _described(service.model(model))


def urls_of(request: Request, asked: ImageRequest, image_format: OutputFormat) -> list[str]:
    """Return the permanent address of every image.

    Raises:
        InvalidInput: `bad_response_format`, a mixture has none.
    """
    paths = [
        permalink(replace(asked, seeds=range(seed, seed + 1)), image_format) for seed in asked.seeds
    ]
    here = str(request.base_url).rstrip("/")
    urls = [f"{here}{path}" for path in paths if path is not None]
    if len(urls) < len(paths):
        raise InvalidInput(
            "An image of a mixture has no address.",
            code="bad_response_format",
            hint="response_format='b64_json'",
            parameter="response_format",
            got="url",
            accepted=ACCEPTED["response_format"],
        )
    return urls


def require_size(model: ServedModel, size: str | None) -> None:
    """Refuse a size that is not the model's.

    Raises:
        InvalidInput: `bad_size`.
    """
    if size not in (None, "auto", own := size_of(model)):
        raise InvalidInput(
            f"The model {model.name} makes images of {own}, and size is {size!r}.",
            code="bad_size",
            hint="size='auto' is the model's own size; the client may scale the image",
            parameter="size",
            got=size,
            accepted=["auto", own],
        )


def size_of(model: ServedModel) -> str:
    """Return the size of a model's images as OpenAI writes it, WIDTHxHEIGHT."""
    height, width = model.artefact.manifest.image_size
    return f"{width}x{height}"


def answer(
    asked: ImageRequest,
    images: GeneratedImages,
    image_format: OutputFormat,
    urls: Sequence[str] | None,
) -> bytes:
    """Encode the images, each with its own parameters, into OpenAI's JSON; or name their `urls`."""
    files = _named(asked, urls) if urls is not None else _encoded(asked, images, image_format)
    content = ImagesResponse(
        created=int(time.time()),
        output_format=image_format,
        size=size_of(asked.model),
        data=files,
        model=asked.model.label,
        truncation_psi=asked.truncation_psi,
        determinism=images.determinism,
    )
    return content.model_dump_json(exclude_none=True).encode()


def _named(asked: ImageRequest, urls: Sequence[str]) -> list[OpenAIImage]:
    name = facts(asked)["class_name"]
    return [
        OpenAIImage(url=url, revised_prompt=name, seed=seed)
        for seed, url in zip(asked.seeds, urls, strict=True)
    ]


def _encoded(
    asked: ImageRequest, images: GeneratedImages, image_format: OutputFormat
) -> list[OpenAIImage]:
    return [
        _image(asked, seed, image, image_format)
        for seed, image in zip(asked.seeds, images.pixels, strict=True)
    ]


def _image(
    asked: ImageRequest, seed: int, image: np.ndarray, image_format: OutputFormat
) -> OpenAIImage:
    parameters = facts(asked, range(seed, seed + 1))
    data = encode(image, image_format, parameters)
    return OpenAIImage(
        b64_json=base64.b64encode(data).decode("ascii"),
        revised_prompt=parameters["class_name"],
        seed=seed,
    )


def _described(model: ServedModel) -> OpenAIModel:
    written_s = (model.artefact.folder / MANIFEST_NAME).stat().st_mtime
    return OpenAIModel(id=model.name, created=int(written_s))
