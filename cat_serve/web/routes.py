"""The routes: parse, ask the service, answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse

from cat_serve.errors import InvalidInput
from cat_serve.images import encode_png
from cat_serve.service import GeneratedImage, ImageRequest, Phase, ServedModel, Service
from cat_serve.web import schemas
from cat_serve.web.problems import MEDIA_TYPE, PROBLEMS, problem

METADATA_KEY = "cat-serve"
SEED_BITS = 32

router = APIRouter()


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


def only(*names: str) -> Any:
    """Return a dependency that refuses query parameters that are not `names`, or come twice."""

    def check(request: Request) -> None:
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if name not in names:
                raise InvalidInput(
                    f"There is no parameter {name[: schemas.MAX_NAME_CHARACTERS]!r} here.",
                    code="unknown_parameter",
                    got=name,
                    accepted=", ".join(names) or "no parameters",
                )
            if given.count(name) > 1:
                raise InvalidInput(
                    f"{name} was given {given.count(name)} times.",
                    code="repeated_parameter",
                    got=request.query_params.getlist(name)[: schemas.MAX_NAME_CHARACTERS],
                    accepted="each parameter once",
                )

    return Depends(check)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems with these statuses for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {
            "content": content,
            "description": "; ".join(
                f"`{code}`: {kind.title.lower()}"
                for code, kind in PROBLEMS.items()
                if kind.status == status
            ),
        }
        for status in statuses
    }


IMAGE_HEADERS = {
    "X-Seed": "seed of the image",
    "X-Model": "name@version of the model",
    "X-Class": "class index",
    "X-Determinism": "`bytes` if the model gives the same bytes in any batch, else `latent`",
    "X-Request-Id": "the request's id",
    "Server-Timing": "milliseconds spent in the queue, in the model and in the encoder",
}
IMAGE_ANSWER: dict[str, Any] = {
    "description": "the image; its metadata holds the parameters",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in IMAGE_HEADERS.items()
    },
}


@router.post(
    "/generate",
    response_class=Response,
    responses={200: IMAGE_ANSWER, **problems(404, 413, 422, 429, 500, 502, 503)},
    dependencies=[only(*schemas.ACCEPTED)],
    summary="Generate one image",
)
async def generate(
    request: Request,
    service: TheService,
    query: Annotated[schemas.GenerateParameters, Query()],
    body: Annotated[schemas.GenerateParameters | None, Body()] = None,
) -> Response:
    """Make one image of a class, in one forward pass.

    Give the parameters in the query or as a JSON body, not both. The image is a function of model version,
    class, seed and `truncation_psi`: equal requests get equal bytes.
    """
    if body is not None and request.query_params:
        raise InvalidInput(
            "There are parameters in the query and in the body.",
            code="query_and_body",
            hint="send all of them in one place",
            got=", ".join(dict(request.query_params)),
            accepted="the query or a JSON body",
        )
    asked = resolve(service, body or query)
    image = await service.generate(asked)
    started = time.perf_counter()
    png = await asyncio.to_thread(encode_png, image.pixels, {METADATA_KEY: metadata(asked)})
    encode_ms = 1e3 * (time.perf_counter() - started)
    return Response(png, media_type="image/png", headers=headers(asked, image, encode_ms))


def resolve(service: Service, parameters: schemas.GenerateParameters) -> ImageRequest:
    """Turn names into indices and draw the seed if none was given."""
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
    seed = parameters.seed
    return ImageRequest(
        model=model,
        class_id=model.classes.index_of(parameters.class_, others),
        seed=secrets.randbits(SEED_BITS) if seed is None else seed,
        truncation_psi=parameters.truncation_psi + 0.0,  # -0.0 is 0
    )


def metadata(asked: ImageRequest) -> str:
    """Return what the PNG says about itself; nothing in it depends on when or where it was made."""
    facts = {
        "model": asked.model.name,
        "version": asked.model.artefact.version,
        "class": asked.class_id,
        "class_name": asked.model.classes.names[asked.class_id],
        "seed": asked.seed,
        "truncation_psi": asked.truncation_psi,
    }
    return json.dumps(facts, ensure_ascii=False)


def headers(asked: ImageRequest, image: GeneratedImage, encode_ms: float) -> dict[str, str]:
    """Return the headers of an image."""
    timing = {"queue": image.queue_ms, "generate": image.generate_ms, "encode": encode_ms}
    return {
        "X-Seed": str(asked.seed),
        "X-Model": asked.model.label,
        "X-Class": str(asked.class_id),
        "X-Determinism": asked.model.artefact.manifest.determinism,
        "Server-Timing": ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in timing.items()),
    }


@router.get("/classes", responses=problems(404, 422), dependencies=[only("model")])
async def classes(
    service: TheService,
    model: Annotated[
        str | None, Query(max_length=schemas.MAX_NAME_CHARACTERS, description="only this model")
    ] = None,
) -> schemas.ClassesAnswer:
    """List the classes of every model by index and name."""
    models = [service.model(model)] if model is not None else list(service.models.values())
    return schemas.ClassesAnswer(models=[_classes_of(service, served) for served in models])


def _classes_of(service: Service, served: ServedModel) -> schemas.ModelClasses:
    return schemas.ModelClasses(
        model=served.name,
        version=served.artefact.version,
        default=served.name == service.default,
        classes=[
            schemas.ClassEntry(index=index, name=name)
            for index, name in enumerate(served.classes.names)
        ],
    )


@router.get("/models", responses=problems(422), dependencies=[only()])
async def models(service: TheService) -> schemas.ModelsAnswer:
    """List the models with what their manifests say."""
    return schemas.ModelsAnswer(models=[_card(service, m) for m in service.models.values()])


def _card(service: Service, served: ServedModel) -> schemas.ModelCard:
    manifest = served.artefact.manifest
    return schemas.ModelCard(
        name=served.name,
        version=served.artefact.version,
        default=served.name == service.default,
        num_classes=manifest.num_classes,
        image_size=manifest.image_size,
        z_shape=list(manifest.z_shape),
        determinism=manifest.determinism,
        truncation_psi=manifest.psi,
        parity=manifest.parity,
        source=manifest.source,
    )


@router.get("/healthz", responses=problems(422), dependencies=[only()])
async def healthz() -> schemas.Health:
    """Say that the process is alive."""
    return schemas.Health(status="ok")


@router.get(
    "/readyz", response_model=schemas.Health, responses=problems(422, 503), dependencies=[only()]
)
async def readyz(request: Request, service: TheService) -> Any:
    """Say whether images can be had: every model is warm and made its golden images."""
    if service.phase is Phase.READY:
        return schemas.Health(status="ready")
    detail = f"The service is {service.phase}: {service.reason}"
    return problem(request, "not_ready", detail, phase=service.phase, retry_after_s=1)


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    return RedirectResponse("docs")
