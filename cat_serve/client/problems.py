"""From an answer that is no success to the error of this project that says the same."""

from __future__ import annotations

import email.utils
import re
import time
from typing import Any

import httpx

from cat_serve import errors
from cat_serve.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    CatServeError,
    InvalidInput,
    Overloaded,
)

PROBLEM_MEDIA_TYPE = "application/problem+json"
TOO_MANY, UNAVAILABLE, TIMEOUT = 429, 503, 504
MAX_SHOWN_CHARACTERS = 200
NOT_OURS = "this is no answer of cat-serve's: is it the address of one, or is a proxy in between?"

_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_STANDARD_MEMBERS = frozenset({"type", "title", "detail", "hint"})
_TREE = [each for each in vars(errors).values() if isinstance(each, type)]
BY_CODE: dict[str, type[CatServeError]] = {
    each.code: each
    for each in _TREE
    if issubclass(each, CatServeError) and each is not CatServeError
}


def error_of(answer: httpx.Response) -> CatServeError:
    """Return the error that an answer stands for; `details` has the members of the problem, and `status`.

    What is no problem document (a proxy's page, another server) becomes an error by its status.
    """
    members = _members(answer)
    code = str(members.get("code", ""))
    detail = str(members.get("detail") or _plain(answer))
    hint = members.get("hint") or (None if members else NOT_OURS)
    kind = BY_CODE.get(code) or _by_status(answer.status_code)
    error = kind(detail, hint=None if hint is None else str(hint))
    error.code = code or kind.code
    details = {name: value for name, value in members.items() if name not in _STANDARD_MEMBERS}
    details.setdefault("status", answer.status_code)
    if (after_s := retry_after_s(answer)) is not None:
        details["retry_after_s"] = after_s
    error.details = details
    return error


def retry_after_s(answer: httpx.Response) -> float | None:
    """Return what Retry-After says, in seconds from now; None if it says nothing that can be read."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _members(answer: httpx.Response) -> dict[str, Any]:
    if not answer.headers.get("Content-Type", "").startswith(PROBLEM_MEDIA_TYPE):
        return {}
    try:
        members = answer.json()
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _plain(answer: httpx.Response) -> str:
    text = _MARKUP.sub(" ", answer.text) if _is_page(answer) else answer.text
    text = " ".join(text.split())[:MAX_SHOWN_CHARACTERS]
    return f"{answer.url.host} answered {answer.status_code} {answer.reason_phrase}: {text or 'nothing'}"


def _is_page(answer: httpx.Response) -> bool:
    kind: str = answer.headers.get("Content-Type", "")
    return kind.startswith("text/html")


def _by_status(status: int) -> type[CatServeError]:
    special = {TOO_MANY: Overloaded, UNAVAILABLE: BackendUnavailable, TIMEOUT: BackendTimeout}
    return special.get(status) or (InvalidInput if 400 <= status < 500 else BackendError)
