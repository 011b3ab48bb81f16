"""Pure ASGI middleware: a request id on every answer, and no body larger than the service reads."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cat_serve.web.problems import REQUEST_ID_HEADER, problem

MAX_BODY_BYTES = 64 * 1024

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


class BodyLimit:
    """Read the body up to the limit before anything else sees the request; answer 413 beyond it."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        seen_bytes = 0
        messages: list[Message] = []
        while True:
            message = await receive()
            messages.append(message)
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self.max_bytes:
                await self._refuse(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body", False):
                break

        async def receive_again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, receive_again, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem(
            Request(scope),
            "body_too_large",
            f"The body has more than {self.max_bytes} bytes.",
            accepted=f"at most {self.max_bytes} bytes",
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)
