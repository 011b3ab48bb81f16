"""The routes beside /generate: what there is, and whether it works."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from cat_serve.phase import Phase
from cat_serve.surface import ImageService
from cat_serve.wanted import ServedModel
from cat_serve.web import bodies, schemas
from cat_serve.web.dependencies import TheService, only, problems
from cat_serve.web.problems import problem

router = APIRouter()


@router.get("/classes", responses=problems(404, 422), dependencies=[only("model")])
async def classes(
    service: TheService,
    model: Annotated[
        str | None, Query(max_length=schemas.MAX_NAME_CHARACTERS, description="only this model")
    ] = None,
) -> bodies.ClassesAnswer:
    """List the classes of every model by index and name."""
    models = [service.model(model)] if model is not None else list(service.models.values())
    return bodies.ClassesAnswer(models=[_classes_of(service, served) for served in models])


def _classes_of(service: ImageService, served: ServedModel) -> bodies.ModelClasses:
    return bodies.ModelClasses(
        model=served.name,
        version=served.artefact.version,
        default=served.name == service.default,
        classes=[
            bodies.ClassEntry(index=index, name=name)
            for index, name in enumerate(served.classes.names)
        ],
    )


@router.get("/models", responses=problems(422), dependencies=[only()])
async def models(service: TheService) -> bodies.ModelsAnswer:
    """Show the card of every model: its files, how it was compared, what it takes, and the limits here."""
    return bodies.ModelsAnswer(models=[_card(service, m) for m in service.models.values()])


def _card(service: ImageService, served: ServedModel) -> bodies.ModelCard:
    manifest = served.artefact.manifest
    engine = service.engine(served.name)
    return bodies.ModelCard(
        name=served.name,
        version=served.artefact.version,
        default=served.name == service.default,
        num_classes=manifest.num_classes,
        image_size=manifest.image_size,
        z_shape=list(manifest.z_shape),
        backend=None if engine is None else engine.name,
        precision=None if engine is None else engine.precision,
        determinism=service.determinism(served.name),
        truncation_psi=manifest.psi,
        stages=service.stages(served.name),
        parity=manifest.parity,
        source=manifest.source,
        files={file: bodies.ModelFile(**asdict(record)) for file, record in manifest.files.items()},
        parameters=schemas.accepted(service.limits.max_images_per_request),
        limits=bodies.ModelLimits(
            max_images_per_request=service.limits.max_images_per_request,
            max_frames_per_request=service.limits.most_frames,
            max_batch=min(service.limits.max_batch, manifest.max_batch),
            max_queued_images=service.limits.max_queued_images,
            deadline_ms=service.limits.deadline_ms or None,
        ),
    )


@router.get("/healthz", responses=problems(422), dependencies=[only()])
async def healthz() -> bodies.Health:
    """Say that the process is alive."""
    return bodies.Health(status="ok")


@router.get(
    "/readyz", response_model=bodies.Health, responses=problems(422, 503), dependencies=[only()]
)
async def readyz(request: Request, service: TheService) -> Any:
    """Say whether images can be had: every model is warm and made its golden images."""
    if service.phase is Phase.READY:
        return bodies.Health(status="ready")
    detail = f"The service is {service.phase}: {service.reason}"
    return problem(request, "not_ready", detail, phase=service.phase, retry_after_s=1)
