"""What tests of new versions share: a second version that can be told from the first, and the admin port."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from cat_serve.settings import Settings
from cat_serve.web.admin import create_admin_app

OTHER = (8, 16)  # image size of the second version, which tells it from the first, (8, 12)


@asynccontextmanager
async def admin_of(running: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_admin_app(running.service, Settings())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


async def image_size(running: Any, query: str = "class=1&seed=1") -> tuple[int, int]:
    answer = await running.client.get(f"/generate?{query}&format=npy")
    assert answer.status_code == 200, answer.text
    return shape_of(answer)


def shape_of(answer: httpx.Response) -> tuple[int, int]:
    header = re.search(rb"'shape': \((\d+), (\d+), 3\)", answer.content)
    assert header
    return int(header[1]), int(header[2])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
