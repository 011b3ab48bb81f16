"""Errors under /v1, in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`.

`code` is that of the problem that it would be elsewhere (`cat_serve.web.problems`), and its other members stand in `error`
too, which OpenAI's Python client shows as `error.body`. The status is OpenAI's: what must be corrected is a 400, where
this service says 422 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request

PREFIX = "/v1/"
MEDIA_TYPE = "application/json"

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CLIENT_ERROR, SERVER_ERROR = "invalid_request_error", "server_error"

# Parameters by the names that they have here, and what is wrong where an error names none.
OPENAI_NAMES = {"class": "prompt", "format": "output_format", "response": "response_format"}
PARAMETER_OF_CODE = {
    "unknown_class": "prompt",
    "ambiguous_class": "prompt",
    "unknown_model": "model",
}
# What repairs a request is sometimes another thing here.
HINTS = {
    "bad_body": 'send Content-Type: application/json and, for example, {"prompt": "ankle boot"}'
}
STATUSES = {422: 400}
REPLACED = frozenset({"type", "title", "status", "detail", "parameter", "hint"})

KINDS: list[JsonValue] = [*sorted({*TYPES.values(), CLIENT_ERROR, SERVER_ERROR})]


class OpenAIError(BaseModel):
    """What was wrong; beside these members those of the problem, such as `got`, `accepted` and `request_id`."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(description="what was wrong with this request, and how to repair it")
    type: str = Field(json_schema_extra={"enum": KINDS})
    param: str | None = Field(description="which parameter, in OpenAI's words")
    code: str = Field(description="stable; the same as elsewhere")


class OpenAIErrorAnswer(BaseModel):
    """An error in OpenAI's shape."""

    model_config = ConfigDict(extra="forbid")

    error: OpenAIError


def status_of(status: int) -> int:
    """Return the status that a problem with this one has under /v1."""
    return STATUSES.get(status, status)


def wanted_by(request: Request) -> bool:
    """Say whether the request was sent to an address of OpenAI's interface."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")).startswith(PREFIX)


def envelope(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return a problem's members as OpenAI would say them; the hint is part of the message."""
    status, code = problem["status"], problem["code"]
    hint = HINTS.get(code, problem.get("hint"))
    error = {
        "message": problem["detail"] + (f" ({hint})" if hint else ""),
        "type": TYPES.get(status, CLIENT_ERROR if status < 500 else SERVER_ERROR),
        "param": _param(code, problem.get("parameter")),
        "code": code,
    }
    others = {name: value for name, value in problem.items() if name not in REPLACED}
    return {"error": {**others, **error}}


def _param(code: str, parameter: object) -> str | None:
    """Return what OpenAI calls the parameter that is wrong; one that there is not has the name that was sent."""
    if parameter is None:
        return PARAMETER_OF_CODE.get(code)
    return (
        str(parameter)
        if code == "unknown_parameter"
        else OPENAI_NAMES.get(str(parameter), str(parameter))
    )
