"""Errors from the engine process to a worker: class, code, message, hint and details stay what they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from cat_serve.errors import CatServeError

logger = logging.getLogger(__name__)


class EngineProcessFailure(RuntimeError):
    """Something unexpected happened in the engine process, whose log has the traceback."""


def written(error: BaseException, request_id: str | None) -> dict[str, Any]:
    """Return an error as JSON values; what is not of this project is logged here, and only named there."""
    if not isinstance(error, CatServeError):
        logger.error("request %s failed in the engine process", request_id, exc_info=error)
        return {"kind": None, "message": type(error).__name__}
    return {
        "kind": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": json.loads(json.dumps(dict(error.details), default=str)),
    }


def read(values: dict[str, Any]) -> Exception:
    """Return the same error."""
    kind = KINDS.get(values["kind"] or "")
    if kind is None:
        return EngineProcessFailure(values["message"])
    error = kind(values["message"], hint=values["hint"], **values["details"])
    error.code = values["code"]
    return error


def _tree(kind: type[CatServeError]) -> Iterator[type[CatServeError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


KINDS = {kind.__name__: kind for kind in _tree(CatServeError)}
