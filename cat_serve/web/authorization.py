"""Pure ASGI middleware that asks for an API key, before anything of the request is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cat_serve.keys import KeyRing
from cat_serve.observation import current
from cat_serve.web.problems import problem

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
OPEN_FILES = "/static/"  # of the page at /
SCHEMES = {  # of the OpenAPI document; either will do
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
REALM = 'Bearer realm="cat-serve"'


class RequireKey:
    """Let requests pass that carry a known key, in `Authorization: Bearer` or in `X-Api-Key`."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        presented = presented_key(Headers(scope=scope))
        caller = self._keys.find(presented) if presented is not None else None
        if caller is None:
            await _refuse(scope, receive, send, presented is not None)
            return
        current().caller = caller
        await self.app(scope, receive, send)


def presented_key(headers: Headers) -> str | None:
    """Return the key of a request; None if it has none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FILES)


async def _refuse(scope: Scope, receive: Receive, send: Send, is_wrong: bool) -> None:
    response = problem(
        Request(scope),
        "unauthorized",
        "The API key is not known here." if is_wrong else "This address wants an API key.",
        hint="send Authorization: Bearer KEY, or X-Api-Key: KEY",
        headers={"WWW-Authenticate": REALM + ', error="invalid_token"' * is_wrong},
    )
    await response(scope, receive, send)
