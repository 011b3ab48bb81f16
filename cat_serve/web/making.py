"""Images made and encoded for one request: off the event loop, and dropped when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from cat_serve.deadlines import Deadline
from cat_serve.observation import current
from cat_serve.surface import GeneratedImages, ImageService
from cat_serve.wanted import Wanted

T = TypeVar("T")


async def made_and_encoded(
    request: Request,
    service: ImageService,
    deadline: Deadline,
    asked: Wanted,
    encode: Callable[[GeneratedImages], T],
) -> tuple[GeneratedImages, T] | None:
    """Make images and encode them in a thread; None if the client left before both was done."""

    async def work() -> tuple[GeneratedImages, T]:
        images = await service.generate(asked, deadline)
        with current().encoding():
            encoding = asyncio.to_thread(encode, images)
            return images, await deadline.hold(encoding, lambda: "encode")

    return await unless_gone(request, work())


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work; if the client closes its connection before it is done, cancel it and return None."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    """Return when the connection is closed; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def server_timing(images: GeneratedImages) -> str:
    """Return the header Server-Timing of an answer that was just encoded, in milliseconds."""
    encode_ms = current().encode_ms or 0.0
    spent = {"queue": images.queue_ms, "generate": images.generate_ms, "encode": encode_ms}
    return ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in spent.items())
