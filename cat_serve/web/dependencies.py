"""What several routes need: the service, a check of the query, and their problems in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from cat_serve.errors import InvalidInput
from cat_serve.service import Service
from cat_serve.web import schemas
from cat_serve.web.problems import MEDIA_TYPE, PROBLEMS


async def service_of(request: Request) -> Service:  # not async, it would be run in a thread
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


def only(*names: str) -> Any:
    """Return a dependency that refuses query parameters that are not `names`, or come twice."""

    async def check(request: Request) -> None:
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
