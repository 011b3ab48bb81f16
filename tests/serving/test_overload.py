"""Too many requests at once, and clients that leave, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from cat_serve.web.server import bind

pytestmark = pytest.mark.anyio

WARM_UP = 2  # passes before the first request: one row, and the golden images


async def test_full_queue_gets_429_at_once_and_nobody_else_suffers(
    run_app: Any, steps: Any
) -> None:
    async with run_app(concurrency=1, max_queued_images=4, max_images_per_request=4) as running:
        running.engine.before = steps
        admitted = [asyncio.create_task(running.client.post("/generate?class=1"))]
        await steps.until_entered(1)
        admitted += [asyncio.create_task(running.client.post("/generate?class=1&n=3"))]
        await steps.until(lambda: waiting(running) == 3)
        refused = await asyncio.wait_for(running.client.post("/generate?class=0&n=2"), 5)
        admitted += [asyncio.create_task(running.client.post("/generate?class=1"))]  # still fits
        steps.allow(10)
        assert [(await task).status_code for task in admitted] == [200, 200, 200]
        assert refused.status_code == 429
        problem = refused.json()
        assert (problem["code"], problem["waiting"], problem["limit"]) == ("overloaded", 3, 4)
        assert int(refused.headers["retry-after"]) == problem["retry_after_s"] >= 1
        assert not any(0 in batch.class_id for batch in running.engine.batches[WARM_UP:])
        assert (await running.client.post("/generate?class=0")).status_code == 200


async def test_engine_that_fails_once_fails_one_pass(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1, max_batch=2) as running:

        def fail_on_class_0(batch: Any) -> None:
            steps(batch)
            if 0 in batch.class_id:
                raise OSError("broken")

        running.engine.before = fail_on_class_0
        asked = [asyncio.create_task(running.client.post("/generate?class=1"))]
        await steps.until_entered(1)
        for class_id in (0, 0, 3, 3):
            asked.append(asyncio.create_task(running.client.post(f"/generate?class={class_id}")))
            await steps.until(lambda: waiting(running) == len(asked) - 1)
        steps.allow(10)
        assert [(await task).status_code for task in asked] == [200, 500, 500, 200, 200]
        sizes = [len(batch) for batch in running.engine.batches[WARM_UP:]]
        assert sizes == [1, 2, 2]


def waiting(running: Any) -> int:
    return sum(map(running.service.queued_images, running.service.models))


@asynccontextmanager
async def on_a_socket(running: Any) -> AsyncIterator[int]:
    """Serve the application over TCP in this event loop; yields the port."""
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(running.app, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def send(port: int, query: str, body: bytes = b"") -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /generate?{query} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
    if body:
        head += "Content-Type: application/json\r\n"
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()
    return writer


@pytest.mark.parametrize("body", [b"", b'{"class": 0, "n": 6}'], ids=["query", "body"])
async def test_rows_of_a_client_that_left_are_never_started(
    run_app: Any, steps: Any, body: bytes
) -> None:
    async with run_app(concurrency=1) as running, on_a_socket(running) as port:
        running.engine.before = steps
        kept = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        gone = await send(port, "" if body else "class=0&n=6", body)
        await steps.until(lambda: waiting(running) == 6)
        gone.transport.abort()
        await steps.until(lambda: waiting(running) == 0)
        after = asyncio.create_task(running.client.post("/generate?class=3"))
        steps.allow(10)
        assert [(await task).status_code for task in (kept, after)] == [200, 200]
        served = [batch.class_id.tolist() for batch in running.engine.batches[WARM_UP:]]
        assert served == [[1], [3]]


async def test_rest_of_a_large_request_is_dropped_when_its_client_leaves(
    run_app: Any, steps: Any
) -> None:
    async with run_app(concurrency=1, max_batch=2) as running, on_a_socket(running) as port:
        running.engine.before = steps
        gone = await send(port, "class=0&n=20")
        await steps.until_entered(1)
        gone.transport.abort()
        await steps.until(lambda: waiting(running) == 0)
        after = asyncio.create_task(running.client.post("/generate?class=3"))
        steps.allow(10)
        assert (await after).status_code == 200
        served = [batch.class_id.tolist() for batch in running.engine.batches[WARM_UP:]]
        assert served == [[0, 0], [3]]
