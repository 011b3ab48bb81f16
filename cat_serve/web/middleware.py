"""Pure ASGI middleware: a request id on every answer, HEAD as GET, and limits on address, head and body."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cat_serve.web.connections import CROWDED, MAX_HEAD_BYTES
from cat_serve.web.observed import CLIENT_GONE
from cat_serve.web.problems import REQUEST_ID_HEADER, problem

MAX_ADDRESS_BYTES = 8 * 1024
MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 20.0
RETRY_AFTER_S = 1
HTTP_VERSIONS = frozenset({"1.0", "1.1"})
CLOSE = {"Connection": "close"}

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class RequestId:
    """Give every request an id, the client's own if it is sane, and every answer the header.

    Being outermost, it also notes when the request arrived: `arrived_s`, of `time.perf_counter`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, arrived_s=time.perf_counter())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, request_id)
            await send(message)

        await self.app(scope, receive, send_with_id)


class Head:
    """Answer HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope["method"] = "GET"  # in place: others read the route from it
        await self.app(scope, receive, send_head)


class RequestLimits:
    """Refuse a request by its head, before anything else of it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fault := fault_of(scope)) is not None:
            code, detail, members = fault
            response = problem(Request(scope), code, detail, headers=CLOSE, **members)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)


def fault_of(scope: Scope) -> tuple[str, str, dict[str, Any]] | None:
    """Return code, detail and other members of the problem with a request's head; None if there is none."""
    headers = scope["headers"]
    if scope.get("state", {}).get(CROWDED):
        detail = "All connections of this server are in use."
        return "overloaded", detail, {"retry_after_s": RETRY_AFTER_S}
    if scope["http_version"] not in HTTP_VERSIONS:
        return "bad_request", "The request has another version of HTTP than 1.0 and 1.1.", {}
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:  # they may be read differently
        return "bad_request", "The request has both Content-Length and Transfer-Encoding.", {}
    address_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if address_bytes > MAX_ADDRESS_BYTES:
        accepted = f"at most {MAX_ADDRESS_BYTES} bytes"
        return "address_too_long", f"The address has {address_bytes} bytes.", {"accepted": accepted}
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
        detail = f"The head of a request may have {MAX_HEAD_BYTES} bytes."
        return "head_too_large", detail, {"accepted": f"at most {MAX_HEAD_BYTES} bytes"}
    return None


class BodyLimit:
    """Read the body before anything else sees the request: up to a limit, beyond it 413, and in time, else 408.

    A client that leaves before its body is whole is gone; nobody else hears of it.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            await self._too_large(scope)(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._body(receive)
        except TimeoutError:
            await self._too_slow(scope)(scope, receive, send)
            return
        if body is None:
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
        elif len(body) > self.max_bytes:
            await self._too_large(scope)(scope, receive, send)
        else:
            await self.app(scope, self._again(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body, or what came of it when it became too large; None if the client left."""
        body = bytearray()
        while len(body) <= self.max_bytes:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body)

    @staticmethod
    def _again(body: bytes, receive: Receive) -> Receive:
        """Return a `receive` that begins with the body."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return receive_again

    def _too_large(self, scope: Scope) -> Response:
        accepted = f"at most {self.max_bytes} bytes"
        detail = f"The body has more than {self.max_bytes} bytes."
        return problem(Request(scope), "body_too_large", detail, accepted=accepted, headers=CLOSE)

    def _too_slow(self, scope: Scope) -> Response:
        detail = f"The body did not arrive in {self.timeout_s:g} s."
        return problem(Request(scope), "request_timeout", detail, headers=CLOSE)
