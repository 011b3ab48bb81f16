"""What several routes need: service, deadline, a check of the query, and their problems in the OpenAPI document."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema

from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import InvalidInput
from cat_serve.settings import MAX_DEADLINE_MS
from cat_serve.surface import ImageService
from cat_serve.web import schemas
from cat_serve.web.openai_errors import OpenAIErrorAnswer, status_of
from cat_serve.web.problems import MEDIA_TYPE, PROBLEMS


async def service_of(request: Request) -> ImageService:  # not async, it would be run in a thread
    service: ImageService = request.app.state.service
    return service


TheService = Annotated[ImageService, Depends(service_of)]

DEADLINE_HEADER = "X-Deadline-Ms"
DEADLINE_ACCEPTED = f"a whole number from 1 to {MAX_DEADLINE_MS}"
DEADLINE_SCHEMA = {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS}

_WHOLE_MS = re.compile(r"[0-9]{1,7}")


async def deadline_of(
    request: Request,
    service: TheService,
    x_deadline_ms: Annotated[
        Annotated[str, WithJsonSchema(DEADLINE_SCHEMA)] | None,
        Header(
            alias=DEADLINE_HEADER,
            description=f"Whole milliseconds from the arrival of the request, 1 to {MAX_DEADLINE_MS}, after which "
            "nobody waits for the answer: it is then a 504, and work that was not started is dropped.",
            examples=[2000],
        ),
    ] = None,
) -> Deadline:
    """Return the deadline of a request: its own, else the server's.

    Raises:
        InvalidInput: `bad_deadline`; two of them are none, since who passes them on may join them or drop one.
    """
    given = ", ".join(request.headers.getlist(DEADLINE_HEADER))
    if x_deadline_ms is None:
        total_ms = service.limits.deadline_ms
    elif _WHOLE_MS.fullmatch(given) and 1 <= int(given) <= MAX_DEADLINE_MS:
        total_ms = float(given)
    else:
        raise InvalidInput(
            f"{DEADLINE_HEADER} {given[: schemas.MAX_NAME_CHARACTERS]!r} is not {DEADLINE_ACCEPTED}.",
            code="bad_deadline",
            parameter=DEADLINE_HEADER,
            got=given,
            accepted=DEADLINE_ACCEPTED,
        )
    return Deadline.after(total_ms, request.state.arrived_s) if total_ms else NEVER


TheDeadline = Annotated[Deadline, Depends(deadline_of)]


def only(
    *names: str, repeatable: Collection[str] = (), hints: Mapping[str, str] | None = None
) -> Any:
    """Return a dependency that refuses query parameters that are not `names`, or come twice and are not `repeatable`.

    Args:
        hints: what to do instead, by a name that is refused.
    """

    async def check(request: Request) -> None:
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if name not in names:
                raise InvalidInput(
                    f"There is no parameter {name[: schemas.MAX_NAME_CHARACTERS]!r} here.",
                    code="unknown_parameter",
                    hint=(hints or {}).get(name),
                    parameter=name[: schemas.MAX_NAME_CHARACTERS],
                    got=name,
                    accepted=", ".join(names) or "no parameters",
                )
            if given.count(name) > 1 and name not in repeatable:
                raise InvalidInput(
                    f"{name} was given {given.count(name)} times.",
                    code="repeated_parameter",
                    parameter=name,
                    got=request.query_params.getlist(name)[: schemas.MAX_NAME_CHARACTERS],
                    accepted="each parameter once",
                )
        require_members_once(await request.body())

    return Depends(check)


def require_one_place(request: Request, body: object | None) -> None:
    """Refuse parameters in the query of a request that has them in its body.

    Raises:
        InvalidInput: `query_and_body`.
    """
    if body is not None and request.query_params:
        raise InvalidInput(
            "There are parameters in the query and in the body.",
            code="query_and_body",
            hint="send all of them in one place",
            got=", ".join(dict(request.query_params)),
            accepted="the query or a JSON body",
        )


def require_members_once(body: bytes) -> None:
    """Refuse a JSON body in which an object has a member twice: readers differ in which of the two counts.

    Raises:
        InvalidInput: `repeated_parameter`.
    """
    if not body:
        return
    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is refused elsewhere
        json.loads(body, object_pairs_hook=_each_once)


def _each_once(members: list[tuple[str, Any]]) -> None:
    counts = Counter(name for name, _ in members)
    for name, count in counts.items():
        if count > 1:
            shown = name[: schemas.MAX_NAME_CHARACTERS]
            raise InvalidInput(
                f"{shown!r} was given {count} times.",
                code="repeated_parameter",
                parameter=shown,
                got=shown,
                accepted="each parameter once",
            )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems with these statuses for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {
            "content": content,
            "description": _codes(code for code, kind in PROBLEMS.items() if kind.status == status),
        }
        for status in statuses
    }


def openai_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that have these statuses under /v1, in OpenAI's shape."""
    return {
        status: {
            "model": OpenAIErrorAnswer,
            "description": _codes(
                code for code, kind in PROBLEMS.items() if status_of(kind.status) == status
            ),
        }
        for status in statuses
    }


def _codes(codes: Iterable[str]) -> str:
    return "; ".join(f"`{code}`: {PROBLEMS[code].title.lower()}" for code in codes)
