"""Put the application together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from cat_serve import __version__
from cat_serve.backends.local import BackendFactory
from cat_serve.keys import KeyRing, keys_of
from cat_serve.manifest import Artefact
from cat_serve.opening import service_of
from cat_serve.settings import Settings
from cat_serve.surface import ImageService
from cat_serve.tracing import Tracing, from_environment
from cat_serve.web import (
    admin,
    bodies,
    generate,
    interpolate,
    openai_images,
    openai_schemas,
    openapi,
    path_schemas,
    permalinks,
    playground,
    problems,
    routes,
    schemas,
)
from cat_serve.web.authorization import SCHEMES, RequireKey
from cat_serve.web.middleware import BodyLimit, Head, RequestId, RequestLimits
from cat_serve.web.observed import Observed

DESCRIPTION = """One-step class-conditional images.

Errors are `application/problem+json` (RFC 9457) with a stable `code`:

| code | status | title |
|---|---|---|
""" + "\n".join(
    f"| `{code}` | {kind.status} | {kind.title} |" for code, kind in problems.PROBLEMS.items()
)


def create_app(
    settings: Settings,
    artefacts: Mapping[str, Artefact] | None = None,
    open_engine: BackendFactory | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the application; its engines are opened when it starts and closed when it stops.

    Args:
        artefacts: the models, if they were read before; by default those of the repository.
        open_engine: opens a model inside this process; by default the engine that the settings name is opened.
        tracing: where traces go; by default where the OTEL_* variables say, if they do.

    Raises:
        ArtefactError: a model is damaged, or there is none.
        InvalidInput: the default model is not there.
    """
    service = service_of(settings, artefacts, open_engine)
    return application(settings, service, keys_of(settings), tracing)


def application(
    settings: Settings,
    service: ImageService,
    keys: KeyRing | None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the application in front of a service, which it starts and closes."""
    app: FastAPI = FastAPIOffline(  # the documentation page must not need other hosts
        title="cat-serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,  # it would send clients to whatever host they name themselves
    )
    app.state.service = service
    app.state.tracing = tracing or from_environment()
    app.include_router(generate.router)
    app.include_router(permalinks.router)
    app.include_router(openai_images.router)
    app.include_router(interpolate.router)
    app.include_router(routes.router)
    app.include_router(playground.router)
    if settings.admin_port is None:
        app.include_router(admin.router)
    _add_middleware(app, settings, keys)
    most = settings.max_images_per_request
    openai = openai_schemas.accepted(most)
    frames = path_schemas.accepted(service.limits.most_frames)
    elsewhere = {
        openai_images.GENERATIONS_PATH: openai,
        interpolate.PATH: frames,
        permalinks.PATH: permalinks.ACCEPTED,
    }
    problems.install(app, schemas.accepted(most), elsewhere)
    _document(app)
    return app


def _add_middleware(app: FastAPI, settings: Settings, keys: KeyRing | None) -> None:
    """Wrap the application; what is added last is outermost."""
    app.state.has_keys = keys is not None
    app.add_middleware(BodyLimit, timeout_s=settings.request_timeout_s)
    if keys is not None:
        app.add_middleware(RequireKey, keys)
    app.add_middleware(RequestLimits)
    app.add_middleware(Head)
    app.add_middleware(
        Observed, app.state.service.metrics, app.state.tracing, lambda: app.openapi()["paths"]
    )
    app.add_middleware(RequestId)  # refusals carry an id, too


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the models while /healthz and /readyz answer already; close them when requests are done."""
    service: ImageService = app.state.service
    starting = asyncio.create_task(service.start())
    yield
    service.stop_accepting()
    await starting
    await service.close()
    if app.state.tracing is not None:
        await asyncio.to_thread(app.state.tracing.close)


def _document(app: FastAPI) -> None:
    """Add the schemas that no route declares to the OpenAPI document: problems, and images as JSON."""
    make = app.openapi

    @functools.lru_cache(maxsize=1)  # what is made is changed in place
    def documented(revision: int) -> dict[str, Any]:
        app.openapi_schema = None
        document = make()
        parts = document["components"]["schemas"]
        for model in (bodies.Problem, bodies.ImagesAnswer):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            parts |= schema.pop("$defs", {})
            parts[model.__name__] = schema
        openapi.declare_served(document, app.state.service)
        openapi.declare_keys(document, SCHEMES if app.state.has_keys else None)
        return document

    app.openapi = lambda: documented(app.state.service.revision)  # type: ignore[method-assign]
