"""Errors on the wire: RFC 9457 problem+json with a closed list of stable codes.

Every code, its status and its title stand in `PROBLEMS`, which the OpenAPI document lists too. Members beside
the standard ones: `code`, `hint`, `got`, `accepted`, `request_id`, and facts of the code's own. No member ever
holds a path of this machine or a traceback.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from cat_serve.errors import CatServeError
from cat_serve.observation import current
from cat_serve.web import openai_errors

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:cat-serve:problem:"
REQUEST_ID_HEADER = "X-Request-Id"
MAX_SHOWN_CHARACTERS = 100
METHOD_NOT_ALLOWED = 405
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Kind(NamedTuple):
    """What never changes about a code."""

    status: int
    title: str


PROBLEMS: dict[str, Kind] = {
    # the request must be corrected
    "missing_parameter":   Kind(422, "A required parameter is missing"),
    "unknown_parameter":   Kind(422, "There is no such parameter"),
    "repeated_parameter":  Kind(422, "A parameter was given more than once"),
    "query_and_body":      Kind(422, "Parameters were given in the query and in the body"),
    "bad_body":            Kind(422, "The body is not a JSON object of parameters"),
    "bad_class":           Kind(422, "The class is neither an index nor a name"),
    "unknown_class":       Kind(422, "The model has no such class"),
    "ambiguous_class":     Kind(422, "Several classes have this name"),
    "bad_seed":            Kind(422, "The seed is not in the accepted range"),
    "bad_mixture":         Kind(422, "The mixture of classes is none, or its weights do not fit"),
    "bad_seeds":           Kind(422, "The seeds are none, come twice, or are too many"),
    "bad_z":               Kind(422, "The latent does not fit the model"),
    "bad_stage":           Kind(422, "The model has no such stage"),
    "no_studio":           Kind(422, "Mixtures and stages of this model cannot be had here"),
    "conflicting_parameters": Kind(422, "Parameters contradict each other"),
    "bad_truncation_psi":  Kind(422, "truncation_psi is not in the accepted range"),
    "bad_n":               Kind(422, "The number of images is not in the accepted range"),
    "bad_format":          Kind(422, "The image format is not available, or cannot hold the image"),
    "bad_response":        Kind(422, "The form of the answer is not available"),
    "bad_model":           Kind(422, "The model's name is not a name"),
    "bad_deadline":        Kind(422, "The deadline is not in the accepted range"),
    "bad_frames":          Kind(422, "The number of frames is not in the accepted range"),
    "bad_fps":             Kind(422, "The number of frames a second is not in the accepted range"),
    "bad_interpolation":   Kind(422, "There is no such way between latents"),
    "bad_loop":            Kind(422, "loop is neither true nor false"),
    "bad_keys":            Kind(422, "Classes and seeds make no key frames"),
    "bad_prompt":          Kind(422, "The prompt is neither an index nor a name of a class"),
    "bad_size":            Kind(422, "The model makes images of another size"),
    "bad_output_format":   Kind(422, "The image format is not available"),
    "bad_response_format": Kind(422, "Images are not returned in this way"),
    "unsupported_value":   Kind(422, "This parameter is known, and not with this value"),
    "bad_request":         Kind(400, "The request is no HTTP/1.1, or may mean two things"),
    "unauthorized":        Kind(401, "The request has no valid API key"),
    "request_timeout":     Kind(408, "The request did not arrive in time"),
    "body_too_large":      Kind(413, "The body is too large"),
    "address_too_long":    Kind(414, "The address is too long"),
    "head_too_large":      Kind(431, "The head of the request is too large"),
    "unknown_model":       Kind(404, "There is no such model"),
    "unknown_version":     Kind(404, "The model has no such version here"),
    "not_found":           Kind(404, "There is no such address"),
    "method_not_allowed":  Kind(405, "This address does not take this method"),
    "reload_failed":       Kind(409, "Not everything in the model repository can be served"),
    # the request may be sent again as it is
    "overloaded":          Kind(429, "Too many images are waiting"),
    "budget_exceeded":     Kind(429, "The budget of the API key does not allow so many images now"),
    "not_ready":           Kind(503, "The service is not ready"),
    "backend_unavailable": Kind(503, "No engine can take the request"),
    "deadline_exceeded":   Kind(504, "The time that the request was given is over"),
    "backend_timeout":     Kind(504, "The engine did not answer in time"),
    # the server's fault
    "backend_error":       Kind(502, "The engine failed"),
    "bad_output":          Kind(500, "The model made an image that must not be shown"),
    "internal_error":      Kind(500, "Something unexpected happened"),
}  # fmt: skip

HINTS = {
    "bad_body": 'send Content-Type: application/json and, for example, {"class": 7}',
    "not_found": "see /docs",
    "method_not_allowed": "see /docs",
}
HTTP_CODES = {400: "bad_body", 404: "not_found", 405: "method_not_allowed"}


def problem(
    request: Request,
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """Return the response for `code`; members that are None are left out."""
    kind = PROBLEMS[code]
    current().code = code
    openai = openai_errors.wanted_by(request)
    status = openai_errors.status_of(kind.status) if openai else kind.status
    request_id = getattr(request.state, "request_id", None)
    given = members_of(code, detail, hint=hint, **members, request_id=request_id)
    own = {REQUEST_ID_HEADER: request_id} if request_id else {}
    if (retry_after_s := members.get("retry_after_s")) is not None:
        own["Retry-After"] = str(retry_after_s)
    return Response(
        json.dumps(openai_errors.envelope(given) if openai else given, allow_nan=False),
        status,
        headers={**own, **(headers or {})},
        media_type=openai_errors.MEDIA_TYPE if openai else MEDIA_TYPE,
    )


def members_of(code: str, detail: str, **members: Any) -> dict[str, Any]:
    """Return the members of a problem without those that are None."""
    kind = PROBLEMS[code]
    standard = {"type": TYPE_PREFIX + code, "title": kind.title, "status": kind.status}
    content = {**standard, "detail": detail, "code": code, **members}
    return {name: value for name, value in content.items() if value is not None}


def shown(value: object) -> Any:
    """Return a value that was sent in a form that is safe to send back: valid JSON and short."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    cut = len(text) > MAX_SHOWN_CHARACTERS
    return text[:MAX_SHOWN_CHARACTERS] + "..." if cut else text


def install(
    app: FastAPI,
    accepted: Mapping[str, str],
    elsewhere: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Answer every error of `app` as a problem.

    Args:
        accepted: what each parameter accepts, in words.
        elsewhere: the same for routes with parameters of their own, by path.
    """

    async def on_known(request: Request, error: Exception) -> Response:
        assert isinstance(error, CatServeError)
        if error.code not in PROBLEMS:
            return await on_unknown(request, error)
        members = dict(error.details)
        if "got" in members:
            members["got"] = shown(members["got"])
        return problem(request, error.code, error.message, hint=error.hint, **members)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        path = getattr(request.scope.get("route"), "path", "")
        return invalid(request, error.errors(), (elsewhere or {}).get(path, accepted))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTP_CODES.get(error.status_code, "internal_error")
        detail = f"{PROBLEMS[code].title}."
        headers = {**(error.headers or {}), **allowed(request, error.status_code)}
        return problem(request, code, detail, hint=HINTS.get(code), headers=headers)

    async def on_unknown(request: Request, error: Exception) -> Response:
        logger.error("request %s failed: %s", request.state.request_id, type(error).__name__)
        return problem(
            request, "internal_error", "The server failed.", hint="its log has the request id"
        )

    app.add_exception_handler(CatServeError, on_known)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unknown)


def allowed(request: Request, status: int) -> dict[str, str]:
    """Return the Allow header of a 405: the methods of all routes of the address, not of the first alone."""
    if status != METHOD_NOT_ALLOWED:
        return {}
    taken = [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    if "GET" in taken and "HEAD" not in taken:  # see `cat_serve.web.middleware.Head`
        taken.insert(1, "HEAD")
    return {"Allow": ", ".join(taken)} if taken else {}


def invalid(
    request: Request, errors: Sequence[Mapping[str, Any]], accepted: Mapping[str, str]
) -> Response:
    """Return the problem for what pydantic found; the first error is told, the others are listed."""
    told = [_explained(error, accepted) for error in errors]
    first = told[0]
    return problem(request, **first, errors=told if len(told) > 1 else None)


def _explained(error: Mapping[str, Any], accepted: Mapping[str, str]) -> dict[str, Any]:
    """Say which parameter is wrong, what was got and what would do."""
    location = error["loc"]
    where, name = location[0], str(location[1]) if len(location) > 1 else ""
    if error["type"] == "extra_forbidden":
        known = ", ".join(accepted) or "none"
        return {
            "code": "unknown_parameter",
            "detail": f"There is no parameter {shown(name)!r} here.",
            "parameter": shown(name),
            "got": shown(error["input"]),
            "accepted": known,
        }
    if where == "body" and name not in accepted:
        detail = f"{PROBLEMS['bad_body'].title}."
        return {"code": "bad_body", "detail": detail, "hint": HINTS["bad_body"]}
    code = f"bad_{name}"
    return {
        "code": code if code in PROBLEMS else "unsupported_value",
        "detail": f"{name} {_written(error['input'])} is not {accepted[name]}.",
        "parameter": name,
        "got": shown(error["input"]),
        "accepted": accepted[name],
    }


def _written(value: object) -> str:
    """Write a value that was sent as JSON does where Python has other words: null, true, false."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(shown(value))
