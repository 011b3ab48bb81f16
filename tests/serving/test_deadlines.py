"""Deadlines over HTTP, with an engine of this process: 504 on time, the stage named, what was not started dropped."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import uvicorn

from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import DeadlineExceeded
from cat_serve.web import generate
from cat_serve.web.server import bind

pytestmark = pytest.mark.anyio

WARM_UP = 2  # passes before the first request: one row, and the golden images


def ask(running: Any, query: str, deadline_ms: object = None) -> asyncio.Task[Any]:
    headers = {} if deadline_ms is None else {"X-Deadline-Ms": str(deadline_ms)}
    return asyncio.create_task(running.client.post(f"/generate?{query}", headers=headers))


def assert_late(answer: Any, stage: str, deadline_ms: int) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (504, "deadline_exceeded")
    assert (problem["stage"], problem["deadline_ms"]) == (stage, deadline_ms)
    assert stage in problem["detail"]


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1e3", "soon", "3600001", "99999999", "²"])
async def test_deadline_that_is_no_number_of_milliseconds_is_refused(
    running: Any, value: str
) -> None:
    headers = [(b"x-deadline-ms", value.encode())]
    answer = await running.client.post("/generate?class=1", headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "bad_deadline")
    assert problem["accepted"] == "a whole number from 1 to 3600000"
    assert len(running.engine.batches) == WARM_UP


@pytest.mark.parametrize("value", ["3600000", "20000"])
async def test_deadline_that_is_long_enough_changes_nothing(running: Any, value: str) -> None:
    plain, timed = await ask(running, "class=1&seed=2"), await ask(running, "class=1&seed=2", value)
    assert timed.status_code == 200
    assert timed.content == plain.content


async def test_request_that_is_late_in_the_queue_is_never_started(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1) as running:
        running.engine.before = steps
        busy = ask(running, "class=1")
        await steps.until_entered(1)
        assert_late(await ask(running, "class=0&n=3", 50), "queue", 50)
        steps.allow(10)
        assert (await busy).status_code == 200
        assert (await ask(running, "class=3")).status_code == 200
        assert [b.class_id.tolist() for b in running.engine.batches[WARM_UP:]] == [[1], [3]]


async def test_request_that_is_late_in_the_engine_is_answered_before_the_pass_ends(
    run_app: Any, steps: Any
) -> None:
    async with run_app(concurrency=1, max_batch=2) as running:
        running.engine.before = steps
        late = ask(running, "class=0&n=6", 300)
        await steps.until_entered(1)
        assert_late(await late, "generate", 300)
        after = ask(running, "class=3")
        steps.allow(10)
        assert (await after).status_code == 200
        assert [b.class_id.tolist() for b in running.engine.batches[WARM_UP:]] == [[0, 0], [3]]


async def test_request_that_is_late_in_the_encoder_says_so(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = threading.Event()
    monkeypatch.setattr(generate, "answer", lambda *_: allowed.wait(20) and (b"", "text/plain"))
    try:
        assert_late(await ask(running, "class=1", 1000), "encode", 1000)
    finally:
        allowed.set()


async def test_servers_own_deadline_holds_for_requests_that_name_none(
    run_app: Any, steps: Any
) -> None:
    async with run_app(deadline_ms=60, concurrency=1) as running:
        card = (await running.client.get("/models")).json()["models"][0]
        assert card["limits"]["deadline_ms"] == 60
        running.engine.before = steps
        own, named = ask(running, "class=1"), ask(running, "class=2", 20_000)
        assert (await own).json()["deadline_ms"] == 60
        steps.allow(10)
        assert (await named).status_code == 200


async def test_deadline_counts_from_the_arrival_of_the_request(running: Any) -> None:
    """A body that comes in slowly has used the time up: nothing is started for it."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(running.app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(
            b"POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: 12\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nX-Deadline-Ms: 100\r\n\r\n"
        )
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(b'{"class": 1}')
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        server.should_exit = True
        await serving
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"stage": "queue"' in answer
    assert len(running.engine.batches) == WARM_UP


async def test_deadline_that_not_even_an_idle_engine_can_keep_is_refused_at_once(
    run_app: Any,
) -> None:
    async with run_app() as running:
        running.engine.before = lambda batch: time.sleep(0.3)
        assert (await ask(running, "class=1")).status_code == 200
        passes = len(running.engine.batches)
        began = time.perf_counter()
        assert_late(await ask(running, "class=1", 100), "queue", 100)
        assert time.perf_counter() - began < 0.1
        assert len(running.engine.batches) == passes


async def test_time_that_ran_out_inside_the_work_is_the_works_own() -> None:
    async def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Deadline.after(20_000).hold(fails(), lambda: "queue")
    with pytest.raises(TimeoutError, match="its own"):
        await NEVER.hold(fails(), lambda: "queue")
    with pytest.raises(DeadlineExceeded):
        await Deadline.after(0.001).hold(asyncio.sleep(5), lambda: "queue")
