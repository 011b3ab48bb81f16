"""An image does not depend on what is made beside it: the shipped model, over HTTP, to the byte."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
from cat_serve.contract import Batch, Output
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

pytestmark = pytest.mark.anyio

MAX_BATCH = 8
CROWD = 16


class Observed(OnnxRuntimeBackend):
    """The real engine; it counts the rows of its passes, and can be held back."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__(artefact, threads=1)
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def run(self, batch: Batch) -> Output:
        self.sizes.append(len(batch))
        assert self.free.wait(20)
        return super().run(batch)


class Shop:
    """The application on the shipped model, its engine and a client."""

    def __init__(self, app: Any, engine: Observed, client: httpx.AsyncClient) -> None:
        self.app, self.engine, self.client = app, engine, client

    async def post(self, query: str) -> bytes:
        answer = await self.client.post(f"/generate?{query}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-determinism"] == "bytes"
        return answer.content

    async def together(self, queries: list[str], images: int) -> list[bytes]:
        """Send requests while the engine is held back, and release it when all are there."""
        first = len(self.engine.sizes)
        self.engine.free.clear()
        asked = [asyncio.create_task(self.post(query)) for query in queries]
        service = self.app.state.service
        async with asyncio.timeout(20):
            while service.queued_images("fashion-32") + sum(self.engine.sizes[first:]) < images:
                await asyncio.sleep(0.001)
            self.engine.free.set()
            return await asyncio.gather(*asked)


@pytest.fixture
async def shop(shipped: Artefact, anyio_backend: str) -> AsyncIterator[Shop]:
    engine = Observed(shipped)
    settings = Settings(concurrency=1, max_batch=MAX_BATCH)
    app = create_app(settings, {"fashion-32": shipped}, lambda artefact: engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await app.state.service.settled.wait()
        yield Shop(app, engine, client)


async def test_concurrent_requests_get_the_bytes_they_get_alone(shop: Shop) -> None:
    queries = [f"class={i % 10}&seed={i}&truncation_psi={1 - i / 32}" for i in range(CROWD)]
    alone = [await shop.post(query) for query in queries]
    assert shop.engine.sizes[-CROWD:] == [1] * CROWD
    done = len(shop.engine.sizes)
    assert await shop.together(queries, CROWD) == alone
    passes = shop.engine.sizes[done:]
    assert sum(passes) == CROWD
    assert max(passes) == MAX_BATCH
    assert len(passes) <= 1 + -(-(CROWD - 1) // MAX_BATCH)


async def test_same_seed_in_a_full_batch_of_other_classes_is_the_same_image(shop: Shop) -> None:
    alone = await shop.post("class=7&seed=1")
    crowd = [f"class={class_id}&seed={class_id}&n=2" for class_id in (0, 2, 9)]
    done = len(shop.engine.sizes)
    together = await shop.together(["class=7&seed=1", *crowd, "class=7&seed=1"], 8)
    assert together[0] == together[-1] == alone
    assert max(shop.engine.sizes[done:]) >= 7


@pytest.mark.parametrize("image_format", ["png", "webp"])
async def test_image_i_of_a_request_is_the_image_of_seed_plus_i(
    shop: Shop, image_format: str
) -> None:
    tail = f"class=3&truncation_psi=0.7&format={image_format}"
    (content, *_) = await shop.together([f"{tail}&seed=40&n=11&response=zip", "class=0&seed=0"], 12)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [archive.read(name) for name in archive.namelist()]
    for seed in (40, 41, 47, 48, 50):
        assert files[seed - 40] == await shop.post(f"{tail}&seed={seed}")
