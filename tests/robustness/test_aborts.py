"""Clients that leave, at every stage of every kind of request: nothing is computed for them, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import cat_serve.web.generate
import cat_serve.web.interpolate
import cat_serve.web.openai_images
from cat_serve.settings import Settings
from cat_serve.web.connections import uvicorn_options
from cat_serve.web.listening import bind
from tests.robustness.conftest import Watched, serve
from tests.robustness.tried import Tried
from tests.robustness.wire import RESET, request

WARM_UP = 2  # passes before the first request: once to warm up, once the golden images
WAIT_S = 20.0
SIDE_PX = 256  # of large images, whose answer does not fit into the buffers of a socket

REQUESTS = {
    "query": request("/generate?class=0&seed=1&n=3", method="POST", body=b""),
    "get": request("/generate?class=0&seed=1&n=3"),
    "body": request("/generate", method="POST", body=b'{"class": 0, "seed": 1, "n": 3}'),
    "zip": request("/generate?class=0&seed=1&n=3&response=zip", method="POST", body=b""),
    "path": request("/interpolate?class=0&seed=1&seed=2&frames=3", method="POST", body=b""),
    "openai": request("/v1/images/generations", method="POST", body=b'{"prompt": "0", "n": 3}'),
}
ENCODERS = {
    "path": (cat_serve.web.interpolate, "encoded"),
    "openai": (cat_serve.web.openai_images, "answer"),
}

leaving = pytest.mark.parametrize("how", ["reset", "close"])
asking = pytest.mark.parametrize("kind", REQUESTS)


class Abortable:
    """An application on a socket, and what is counted in it."""

    def __init__(self, running: Any, port: int, tried: Tried) -> None:
        self.running, self.port, self.tried = running, port, tried
        self.tasks = len(asyncio.all_tasks())

    async def open(self, data: bytes) -> socket.socket:
        """Connect and send."""
        self.tried.add("aborts")
        loop = asyncio.get_running_loop()
        opened = socket.socket()
        opened.setblocking(False)
        await loop.sock_connect(opened, ("127.0.0.1", self.port))
        await loop.sock_sendall(opened, data)
        return opened

    @property
    def waiting(self) -> int:
        return sum(map(self.running.service.queued_images, self.running.service.models))

    async def counted(self) -> dict[str, float]:
        """Return how many requests for images were answered, by class of status, and how many clients left."""
        text = (await self.running.client.get("/metrics")).text
        found = {"gone": 0.0, "2xx": 0.0, "4xx": 0.0, "5xx": 0.0}
        for line in text.splitlines():
            value = float(line.rsplit(" ", 1)[1]) if line[0] != "#" else 0
            if line.startswith("cat_serve_client_gone_total"):
                found["gone"] += value
            elif line.startswith("cat_serve_requests_total") and "/metrics" not in line:
                found[line.split('status="')[1][:3]] += value
        return found

    async def require_quiet(self, caplog: pytest.LogCaptureFixture, **counts: float) -> None:
        """Fail unless nothing of the request is left, and it is counted as expected."""
        await until(lambda: self.waiting == 0)
        await until(lambda: self.running.service.passes_in_flight("toy") == 0)
        await until(lambda: len(asyncio.all_tasks()) <= self.tasks)
        expected = {"gone": 0.0, "2xx": 0.0, "4xx": 0.0, "5xx": 0.0} | counts
        assert await self.counted() == expected
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds, for a bounded time."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def leave(opened: socket.socket, how: str) -> None:
    if how == "reset":
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    opened.close()


@pytest.fixture
def abortable(run_app: Any, tried: Tried) -> Any:
    """Run the application on a socket, as `cat-serve serve` does."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Abortable]:
        async with run_app(concurrency=1, **settings) as running:
            with bind("127.0.0.1", 0) as listener:
                options = uvicorn_options(Settings())
                config = uvicorn.Config(running.app, log_config=None, lifespan="off", **options)
                server = uvicorn.Server(config)
                serving = asyncio.create_task(server.serve([listener]))
                await until(lambda: server.started)
                yield Abortable(running, listener.getsockname()[1], tried)
                server.should_exit = True
                await serving

    return run


@pytest.mark.anyio
@leaving
@asking
async def test_client_that_leaves_before_its_request_is_whole_is_counted_apart(
    abortable: Any, caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    data = REQUESTS[kind]
    head = data.index(b"\r\n\r\n") + 4
    has_body = head < len(data)
    async with abortable() as app:
        gone = 0
        for cut in sorted({1, head // 2, head - 1, *([head, (head + len(data)) // 2, len(data) - 1] * has_body)}):  # fmt: skip
            opened = await app.open(data[:cut])
            await asyncio.sleep(0.02)
            leave(opened, how)
            gone += cut >= head
        await app.require_quiet(caplog, gone=gone)
        assert len(app.running.engine.batches) == WARM_UP


@pytest.mark.anyio
@leaving
@asking
async def test_client_that_leaves_the_queue_is_never_served(
    abortable: Any, steps: Any, caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    async with abortable() as app:
        app.running.engine.before = steps
        kept = asyncio.create_task(app.running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        opened = await app.open(REQUESTS[kind])
        await until(lambda: app.waiting == 3)
        leave(opened, how)
        await until(lambda: app.waiting == 0)
        steps.allow(10)
        assert (await kept).status_code == 200
        await app.require_quiet(caplog, gone=1, **{"2xx": 1})
        assert [len(batch) for batch in app.running.engine.batches[WARM_UP:]] == [1]


@pytest.mark.anyio
@leaving
@asking
async def test_client_that_leaves_the_engine_is_not_encoded_for(
    abortable: Any, steps: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any, kind: str, how: str
) -> None:  # fmt: skip
    encoded: list[object] = []
    module, name = ENCODERS.get(kind, (cat_serve.web.generate, "answer"))
    monkeypatch.setattr(module, name, lambda *given: encoded.append(given))
    async with abortable(max_batch=2) as app:
        app.running.engine.before = steps
        opened = await app.open(REQUESTS[kind])
        await steps.until_entered(1)
        leave(opened, how)
        await until(lambda: app.waiting == 0)
        steps.allow(10)
        await app.require_quiet(caplog, gone=1)
        # the pass that ran is over, and the third image was never made
        assert [len(batch) for batch in app.running.engine.batches[WARM_UP:]] == [2]
    assert encoded == []


@pytest.mark.anyio
@leaving
@asking
async def test_client_that_leaves_the_encoder_is_counted_apart(
    abortable: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any, kind: str, how: str
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    module, name = ENCODERS.get(kind, (cat_serve.web.generate, "answer"))
    encode = getattr(module, name)

    def held(*given: Any) -> Any:
        entered.set()
        assert go_on.wait(WAIT_S)
        return encode(*given)

    monkeypatch.setattr(module, name, held)
    async with abortable() as app:
        opened = await app.open(REQUESTS[kind])
        await until(entered.is_set)
        leave(opened, how)
        await until(lambda: len(asyncio.all_tasks()) <= app.tasks)
        go_on.set()
        await app.require_quiet(caplog, gone=1)


@pytest.mark.anyio
@leaving
@pytest.mark.parametrize("form", ["zip", "json", "image"])
async def test_client_that_leaves_in_the_middle_of_its_answer_does_no_harm(
    abortable: Any, add_model: Any, caplog: pytest.LogCaptureFixture, form: str, how: str
) -> None:
    add_model(image_size=(SIDE_PX, SIDE_PX))
    data = request(f"/generate?class=0&seed=1&n=40&format=npy&response={form}")
    async with abortable() as app:
        opened = await app.open(data)
        got = await asyncio.get_running_loop().sock_recv(opened, 1000)
        assert got.startswith(b"HTTP/1.1 200 OK")
        leave(opened, how)
        await app.require_quiet(caplog, **{"2xx": 1})  # the answer was given


@pytest.mark.anyio
async def test_budget_of_a_client_that_left_is_free_again(
    abortable: Any, steps: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CAT_SERVE_API_KEYS", "alice=0123456789abcdef")
    key = {"X-Api-Key": "0123456789abcdef"}
    wanted = request("/generate?class=0&n=3", "X-Api-Key: 0123456789abcdef", method="POST", body=b"")  # fmt: skip
    async with abortable(key_queued_images=3) as app:
        app.running.engine.before = steps
        for _ in range(3):
            entered = steps.entered
            opened = await app.open(wanted)
            await steps.until_entered(entered + 1)
            refused = await app.running.client.post("/generate?class=1", headers=key)
            assert refused.json()["code"] == "budget_exceeded"
            leave(opened, "reset")
            steps.allow()
            await until(lambda: app.running.service.passes_in_flight("toy") == 0)
        steps.allow(10)
        assert (await app.running.client.post("/generate?class=1&n=3", headers=key)).status_code == 200  # fmt: skip


@pytest.mark.anyio
async def test_nonsense_behind_an_answer_ends_the_connection_quietly(
    abortable: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """A request without a key is answered before its body was read, and then the body is none."""
    monkeypatch.setenv("CAT_SERVE_API_KEYS", "alice=0123456789abcdef")
    head = request("/generate", "Transfer-Encoding: chunked", method="POST")
    loop = asyncio.get_running_loop()
    async with abortable() as app:
        opened = await app.open(head + b"1\r\na\r\n")
        assert (await loop.sock_recv(opened, 4096)).startswith(b"HTTP/1.1 401 ")
        await loop.sock_sendall(opened, b"zz\r\n")
        assert await loop.sock_recv(opened, 4096) == b""
        opened.close()
        await until(lambda: len(asyncio.all_tasks()) <= app.tasks)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    yield from serve(tmp_path_factory.mktemp("aborts") / "log")


def abort_at_random(server: Watched, draw: random.Random) -> None:
    """Ask for something and leave after some of it was sent, or some time later."""
    data = draw.choice(list(REQUESTS.values())).replace(b"class=0", b"class=7")
    with socket.create_connection(("127.0.0.1", server.port)) as opened:
        opened.sendall(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        time.sleep(draw.choice((0, 0.001, draw.random() * 0.2)))
        if draw.random() < 0.5:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def abort_many(server: Watched, tried: Tried, count: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        tried.add("aborts")
        abort_at_random(server, draw)


def require_nothing_left(server: Watched) -> None:
    ends_s = time.monotonic() + WAIT_S
    names = ("cat_serve_queued_images", "cat_serve_passes_in_flight")
    while any(server.metric(name) for name in names) and time.monotonic() < ends_s:
        time.sleep(0.1)
    assert [server.metric(name) for name in names] == [0, 0]
    assert 'status="5xx"' not in _metrics_of_images(server)
    server.require_well()


def _metrics_of_images(server: Watched) -> str:
    import httpx

    text = httpx.get(server.address + "/metrics", timeout=WAIT_S).text
    rows = [row for row in text.splitlines() if row.startswith("cat_serve_requests_total")]
    return "\n".join(row for row in rows if "/readyz" not in row)  # 503 until it was ready


def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    server: Watched, tried: Tried
) -> None:
    abort_many(server, tried, 60, seed=1)
    require_nothing_left(server)
    assert server.metric("cat_serve_client_gone_total") > 10


def abort_many_at_once(server: Watched, tried: Tried, count: int, seeds: range) -> None:
    clients = [
        threading.Thread(target=abort_many, args=(server, tried, count, seed)) for seed in seeds
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


@pytest.mark.slow
def test_thousands_of_clients_that_leave_cost_no_memory(server: Watched, tried: Tried) -> None:
    """The first thousand take what threads, arenas and the engine keep; those after them cost nothing more."""
    abort_many_at_once(server, tried, 250, range(4))
    before_mib, files = server.memory_mib(), len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))  # fmt: skip
    abort_many_at_once(server, tried, 500, range(4, 8))
    require_nothing_left(server)
    assert server.memory_mib() < before_mib + 8
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) <= files + 8
