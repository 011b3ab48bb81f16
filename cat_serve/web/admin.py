"""What whoever runs the service looks at: metrics, and with a port of its own also health and the settings."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from cat_serve import __version__
from cat_serve.configuration import as_object
from cat_serve.settings import Settings
from cat_serve.surface import ImageService
from cat_serve.web import problems, routes
from cat_serve.web.dependencies import TheService, only
from cat_serve.web.dependencies import problems as problems_of
from cat_serve.web.middleware import BodyLimit, RequestId

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


def create_admin_app(service: ImageService, settings: Settings) -> FastAPI:
    """Return the application of the admin port: /metrics, /healthz, /readyz and /config.

    It asks for no key: keep its address to yourself.
    """
    app = FastAPI(title="cat-serve admin", version=__version__, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_api_route("/healthz", routes.healthz, dependencies=[only()])
    app.add_api_route("/readyz", routes.readyz, response_model=None, dependencies=[only()])

    async def config() -> dict[str, Any]:
        """Show every setting and where it comes from; secrets are masked."""
        return as_object(settings)

    app.add_api_route("/config", config, dependencies=[only()])
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestId)
    problems.install(app, {})
    return app
