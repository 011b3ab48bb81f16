"""Pure ASGI middleware that tells of every request: one log line, its metrics, and its trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cat_serve.observation import CURRENT, Observation
from cat_serve.surface import Counts
from cat_serve.tracing import RequestTrace, Tracing

access = logging.getLogger("cat_serve.access")

CLIENT_GONE = 499  # what a route answers when nobody listens any more
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds
SERVER_ERROR = 500


class Observed:
    """Give every request an `Observation`, and tell what stands on it when the answer is sent.

    Args:
        paths: returns the declared routes, to name a request that was answered before it was routed.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Counts,
        tracing: Tracing | None,
        paths: Callable[[], Iterable[str]],
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing
        self._declared = paths
        self._paths: frozenset[str] | None = None  # asked for when it is needed: it takes a while

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        observed = Observation(request_id=scope["state"]["request_id"])
        method = scope["method"] if scope["method"] in METHODS else OTHER
        trace = self._begin(observed, method, scope)
        status = SERVER_ERROR  # of what breaks off before it says otherwise

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = CURRENT.set(observed)
        try:
            await self.app(scope, receive, send_noted)
        except Exception:
            observed.code = "internal_error"
            raise
        finally:
            CURRENT.reset(token)
            route = self._route(scope)
            seconds = time.perf_counter() - scope["state"]["arrived_s"]
            if trace is not None:
                trace.end(method, route, status, observed)
            self._count(route, status, seconds, observed)
            tell(method, route, status, 1e3 * seconds, observed)

    def _begin(self, observed: Observation, method: str, scope: Scope) -> RequestTrace | None:
        if self._tracing is None or scope["path"] in PROBES:
            return None  # of a probe every few seconds nobody wants to read
        observed.trace = trace = self._tracing.begin(method, Headers(scope=scope))
        return trace

    def _route(self, scope: Scope) -> str:
        """Return the route as it was declared, never what the client wrote."""
        declared = getattr(scope.get("route"), "path", None)
        if declared is not None:
            return str(declared)
        if self._paths is None:
            self._paths = frozenset(self._declared())
        return scope["path"] if scope["path"] in self._paths else OTHER

    def _count(self, route: str, status: int, seconds: float, observed: Observation) -> None:
        if status == CLIENT_GONE:
            self._metrics.gone(route)
            return
        key = observed.caller.name if observed.caller is not None else None
        self._metrics.answered(route, status, seconds, observed.code, key)
        if observed.encode_ms is not None and observed.model is not None:
            self._metrics.encoded(observed.model, observed.encode_ms)


def tell(method: str, route: str, status: int, ms: float, observed: Observation) -> None:
    """Write the access line. It has nothing that a client may choose freely, and no key."""
    quiet = route in PROBES and status < SERVER_ERROR
    level = logging.DEBUG if quiet else logging.INFO
    if not access.isEnabledFor(level):
        return
    gone = status == CLIENT_GONE
    facts = {
        "request_id": observed.request_id,
        "method": method,
        "route": route,
        "status": None if gone else status,
        "ms": round(ms, 2),
        "key": observed.caller.name if observed.caller is not None else None,
        "model": observed.label,
        "class": observed.class_id,
        "seed": observed.seed,
        "n": observed.n,
        "queue_ms": _rounded(observed.queue_ms),
        "generate_ms": _rounded(observed.generate_ms),
        "encode_ms": _rounded(observed.encode_ms),
        "code": observed.code,
        "client_gone": True if gone else None,
    }
    # What `access.log` does, without walking the stack for the name of this file.
    extra = {"facts": facts}
    access.handle(access.makeRecord(access.name, level, "", 0, "request", (), None, extra=extra))


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)
