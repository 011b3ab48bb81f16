"""What whoever runs the service looks at: metrics, and with a port of its own also health and the settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from cat_serve import __version__
from cat_serve.configuration import as_object
from cat_serve.errors import ArtefactError, ReloadFailed
from cat_serve.settings import Settings
from cat_serve.surface import ImageService
from cat_serve.web import problems, routes
from cat_serve.web.dependencies import TheService, only
from cat_serve.web.dependencies import problems as problems_of
from cat_serve.web.middleware import BodyLimit, Head, RequestId, RequestLimits

router = APIRouter()

EXPOSITION = {
    "description": "Prometheus' text format, or OpenMetrics if that is accepted.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: EXPOSITION, **problems_of(422)},
    dependencies=[only()],
)
async def metrics(request: Request, service: TheService) -> Response:
    """Expose what was counted, and the present state."""
    content, media_type = await service.scrape(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})


async def reload(service: TheService) -> dict[str, Any]:
    """Read the model repository again and serve what is new in it.

    Raises:
        ReloadFailed: it cannot be read, or something new in it cannot be served; what was served is served on.
        BackendUnavailable: the service is not running.
    """
    try:
        models = await service.reload()
    except ArtefactError as error:
        raise ReloadFailed(error.message, hint=error.hint, models=[]) from error
    told = [{k: v for k, v in asdict(one).items() if v is not None} for one in models]
    for one in models:
        if one.outcome == "failed":
            on = f"{one.before} serves on" if one.before else "it is not served"
            raise ReloadFailed(
                f"{one.model}: {on}. {one.reason}", hint=one.hint, model=one.model, models=told
            )
    return {"models": told}


def create_admin_app(service: ImageService, settings: Settings) -> FastAPI:
    """Return the application of the admin port: /metrics, /healthz, /readyz, /config and /reload.

    It asks for no key: keep its address to yourself.
    """
    app = FastAPI(
        title="cat-serve admin", version=__version__, openapi_url=None, redirect_slashes=False
    )
    app.state.service = service
    app.include_router(router)
    app.add_api_route("/healthz", routes.healthz, dependencies=[only()])
    app.add_api_route("/readyz", routes.readyz, response_model=None, dependencies=[only()])

    async def config() -> dict[str, Any]:
        """Show every setting and where it comes from; secrets are masked."""
        return as_object(settings)

    app.add_api_route("/config", config, dependencies=[only()])
    app.add_api_route("/reload", reload, methods=["POST"], dependencies=[only()])
    app.add_middleware(BodyLimit, timeout_s=settings.request_timeout_s)
    app.add_middleware(RequestLimits)
    app.add_middleware(Head)
    app.add_middleware(RequestId)
    problems.install(app, {})
    return app
