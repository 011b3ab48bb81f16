"""The front end over two real Triton servers that are killed, stopped, and given the wrong model.

What it answers is compared, byte for byte, with what the embedded engine answers to the same request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton_grpc

from cat_serve.manifest import MANIFEST_NAME, load_artefact
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export.triton_server.server import TritonServer
from tests.triton_servers import copy_repository

pytestmark = pytest.mark.anyio

MODEL = "fashion-32"
WAIT_S = 60.0

# The model that ships, with two things that a test can turn on while it runs.
MODEL_PY = """
import time
from pathlib import Path

from cat_serve.triton_models.engine import TritonPythonModel as Engine

HERE = Path(__file__).parent


class TritonPythonModel(Engine):
    def execute(self, requests):
        time.sleep(float((HERE / "delay_s").read_text()))
        return super().execute(requests)

    def _response(self, outcome):
        if (HERE / "lie").exists():
            outcome = type(outcome)(255 - outcome.images, outcome.ok)
        return super()._response(outcome)
"""


@dataclass
class Served:
    """A server and its own copy of the repository."""

    server: TritonServer
    repository: Path

    @property
    def version_folder(self) -> Path:
        return self.repository / MODEL / "1"

    def delay(self, seconds: float) -> None:
        (self.version_folder / "delay_s").write_text(str(seconds))

    def send(self, what: signal.Signals) -> None:
        os.kill(self.server.process.pid, what)

    def restart(self) -> None:
        self.server.restart().wait_ready()

    def made(self) -> int:
        """Return how many images it made since it was started; Triton counts a little after it has answered."""
        with triton_grpc.InferenceServerClient(self.server.grpc_url) as client:
            counts = [-1, 0]
            while counts[-1] != counts[-2]:
                time.sleep(0.1)
                statistics = client.get_inference_statistics(MODEL)
                counts.append(int(statistics.model_stats[0].inference_count))
        return counts[-1]


@pytest.fixture(scope="module")
def pair(
    project_root: Path, start_triton: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Served, Served]:
    served = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("pair") / "repository"
        repository = copy_repository(project_root / "model_repository", folder)
        (repository / MODEL / "1" / "model.py").write_text(MODEL_PY)
        (repository / MODEL / "1" / "delay_s").write_text("0")
        served.append(Served(start_triton(repository, models=[MODEL]), repository))
    return served[0], served[1]


@pytest.fixture(autouse=True)
def whole(pair: tuple[Served, Served]) -> Iterator[None]:
    """Leave both servers as the next test wants them."""
    yield
    for served in pair:
        served.delay(0)
        (served.version_folder / "lie").unlink(missing_ok=True)
        if served.server.process.poll() is not None:
            served.restart()
        served.send(signal.SIGCONT)


@dataclass
class Front:
    client: httpx.AsyncClient
    endpoints: list[Any]

    async def ask(self, query: str, deadline_ms: int | None = None) -> httpx.Response:
        headers = {} if deadline_ms is None else {"X-Deadline-Ms": str(deadline_ms)}
        return await self.client.post(f"/generate?{query}", headers=headers)

    async def is_ready(self) -> bool:
        return (await self.client.get("/readyz")).status_code == 200


@asynccontextmanager
async def front(*served: Served, **settings: Any) -> AsyncIterator[Front]:
    """Run a front end in this process: over the servers, or with none, with the embedded engine."""
    if served:
        urls = tuple(one.server.grpc_url for one in served)
        settings = {"backend": "triton", "triton_url": urls, "triton_stall_ms": 1000} | settings
    app = create_app(Settings(**settings))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        await stack.enter_async_context(client)
        await app.state.service.settled.wait()
        engine = app.state.service.engine(MODEL)
        yield Front(client, getattr(engine, "endpoints", []))


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.02)


def queries(count: int) -> list[str]:
    """Return different requests, a few of them for several images."""
    return [
        f"class={i % 10}&seed={1000 + i}&n={3 if i % 20 == 7 else 1}&response=zip"
        for i in range(count)
    ]


async def embedded(asked: list[str]) -> list[bytes]:
    async with front() as own:
        return [(await own.ask(query)).content for query in asked]


def assert_all_right(answers: list[httpx.Response], expected: list[bytes]) -> None:
    assert {answer.status_code for answer in answers} == {200}, [
        answer.text for answer in answers if answer.status_code != 200
    ]
    wrong = [i for i, answer in enumerate(answers) if answer.content != expected[i]]
    assert not wrong


async def test_answers_are_the_bytes_of_the_embedded_engine(pair: tuple[Served, Served]) -> None:
    asked = [
        "class=7&seed=1",
        "class=bag&seed=4294967280&n=16&format=npy",
        "class=3&seed=5&truncation_psi=0.3&n=5&response=json",
        "class=0&seed=9&truncation_psi=0&n=20&format=webp",
    ]
    async with front(*pair, max_batch=8) as over_triton, front() as own:
        for query in asked:
            answer, expected = await over_triton.ask(query), await own.ask(query)
            assert answer.status_code == 200, answer.text
            assert answer.content == expected.content
            assert answer.headers["x-determinism"] == "bytes"
        card = (await over_triton.client.get("/models")).json()["models"][0]
    assert (card["backend"], card["precision"], card["determinism"]) == ("triton", "fp32", "bytes")


async def test_calls_go_to_both_servers(pair: tuple[Served, Served]) -> None:
    for balance in ("least-loaded", "round-robin"):
        async with front(*pair, triton_balance=balance) as over_triton:
            before = [served.made() for served in pair]
            answers = [await over_triton.ask(f"class=1&seed={seed}") for seed in range(6)]
            assert {answer.status_code for answer in answers} == {200}
            made = [served.made() - old for served, old in zip(pair, before, strict=True)]
            assert made == [3, 3], balance


async def hurt_while_asked(
    over_triton: Front, servers: tuple[Served, Served], number: int, sign: signal.Signals,
    asked: list[str], **more: Any,
) -> None:  # fmt: skip
    """Send a signal to a server that has calls in flight; none of them may be lost, or differ."""
    expected, victim = await embedded(asked), over_triton.endpoints[number]
    for served in servers:
        served.delay(0.02)
    asking = [asyncio.create_task(over_triton.ask(query, **more)) for query in asked]
    await until(lambda: victim.in_flight > 2 and sum(task.done() for task in asking) > 2)
    servers[number].send(sign)
    held = victim.in_flight
    assert_all_right(await asyncio.gather(*asking), expected)
    assert held > 2
    assert victim.state == "down"


async def require_used_again(
    over_triton: Front, server: Served, number: int, asked: list[str]
) -> None:
    """Wait until a server is back; it must get calls, and answer them right."""
    await until(lambda: over_triton.endpoints[number].state == "ready")
    before = server.made()
    answers = await asyncio.gather(*(over_triton.ask(query) for query in asked))
    assert_all_right(answers, await embedded(asked))
    assert server.made() > before


async def test_killed_server_costs_no_request_and_is_used_again_when_it_is_back(
    pair: tuple[Served, Served],
) -> None:
    asked = queries(80)
    async with front(*pair) as over_triton:
        await hurt_while_asked(over_triton, pair, 0, signal.SIGKILL, asked)
        assert await over_triton.is_ready()
        pair[0].restart()
        await require_used_again(over_triton, pair[0], 0, asked[:20])


async def test_stalled_server_costs_no_deadline_and_is_used_again_when_it_goes_on(
    pair: tuple[Served, Served],
) -> None:
    asked = queries(60)
    async with front(*pair) as over_triton:
        await hurt_while_asked(over_triton, pair, 1, signal.SIGSTOP, asked, deadline_ms=20_000)
        pair[1].send(signal.SIGCONT)
        await require_used_again(over_triton, pair[1], 1, asked[:20])


async def test_short_deadline_is_kept_although_a_server_has_just_stalled(
    pair: tuple[Served, Served],
) -> None:
    """Long before the server counts as stalled: a call asks in time for its own deadline."""
    async with front(*pair, triton_stall_ms=60_000, triton_balance="round-robin") as over_triton:
        expected = await embedded(asked := queries(4))
        pair[0].send(signal.SIGSTOP)
        answers = await asyncio.gather(*(over_triton.ask(query, 8000) for query in asked))
        assert_all_right(answers, expected)


async def test_nothing_is_ready_while_all_servers_are_gone_and_everything_when_one_is_back(
    pair: tuple[Served, Served],
) -> None:
    async with front(*pair) as over_triton:
        assert await over_triton.is_ready()
        for served in pair:
            served.send(signal.SIGKILL)
        await until(lambda: {e.state for e in over_triton.endpoints} == {"down"})
        began = time.monotonic()
        answer, ready = await over_triton.ask("class=1"), await over_triton.client.get("/readyz")
        assert time.monotonic() - began < 1
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (ready.status_code, ready.json()["phase"]) == (503, "unavailable")
        for told in (answer, ready):
            assert "none of 2 Triton servers can serve fashion-32" in told.text
            assert "127.0.0.1" not in told.text
        pair[1].restart()
        await until(over_triton.is_ready)
        assert (await over_triton.ask("class=1&seed=3")).status_code == 200


async def test_front_end_may_start_before_its_servers(pair: tuple[Served, Served]) -> None:
    pair[0].send(signal.SIGKILL)
    pair[0].server.process.wait()
    async with front(pair[0]) as over_triton:
        assert not await over_triton.is_ready()
        pair[0].restart()
        await until(over_triton.is_ready)
        assert (await over_triton.ask("class=1&seed=3")).status_code == 200


async def test_server_that_does_not_make_the_golden_images_is_not_used(
    pair: tuple[Served, Served], caplog: pytest.LogCaptureFixture
) -> None:
    (pair[1].version_folder / "lie").touch()
    asked = queries(10)
    expected = await embedded(asked)
    async with front(*pair) as over_triton:
        assert [e.state for e in over_triton.endpoints] == ["ready", "down"]
        before = pair[1].made()
        assert_all_right([await over_triton.ask(query) for query in asked], expected)
        assert "does not make its golden images" in caplog.text
        (pair[1].version_folder / "lie").unlink()
        await until(lambda: over_triton.endpoints[1].state == "ready")
        assert pair[1].made() > before


async def test_server_of_another_version_is_not_used(
    pair: tuple[Served, Served], caplog: pytest.LogCaptureFixture
) -> None:
    """It is what a rolling update looks like: the same model name and version number, other files."""
    own = load_artefact(pair[1].version_folder).version
    manifest = pair[1].version_folder / MANIFEST_NAME
    config = pair[1].repository / MODEL / "config.pbtxt"
    kept = manifest.read_text(), config.read_text()
    asked = queries(10)
    expected = await embedded(asked)
    async with front(*pair) as over_triton:
        pair[1].send(signal.SIGKILL)
        pair[1].server.process.wait()
        manifest.write_text(kept[0] + "\n")
        other = load_artefact(pair[1].version_folder).version
        config.write_text(kept[1].replace(own, other))
        pair[1].restart()
        with caplog.at_level(logging.WARNING):
            await until(lambda: f"It serves version {other}" in caplog.text)
        before = pair[1].made()
        assert_all_right([await over_triton.ask(query) for query in asked], expected)
        assert pair[1].made() == before
        assert over_triton.endpoints[1].state == "down"
    manifest.write_text(kept[0])
    config.write_text(kept[1])
    pair[1].send(signal.SIGKILL)  # it is started again with its own version


async def test_another_precision_than_was_asked_for_is_not_used(
    pair: tuple[Served, Served], caplog: pytest.LogCaptureFixture
) -> None:
    async with front(pair[0], precision="fp16") as over_triton:
        answer = await over_triton.ask("class=1")
    assert answer.status_code == 503
    assert "It serves fp32, and fp16 was asked for" in caplog.text


async def test_deadline_ends_the_request_on_time_and_drops_it_from_the_servers_queue(
    pair: tuple[Served, Served],
) -> None:
    async with front(pair[0]) as over_triton:
        before = pair[0].made()
        pair[0].delay(1.5)
        first = asyncio.create_task(over_triton.ask("class=1&seed=1"))
        await until(lambda: over_triton.endpoints[0].in_flight == 1)
        await asyncio.sleep(0.3)  # it is being made, what comes now waits in the server's queue
        began = time.monotonic()
        late = await asyncio.gather(*(over_triton.ask(f"class=2&n={n}", 500) for n in (1, 2, 3)))
        assert time.monotonic() - began < 1.2
        for answer in late:
            assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
            assert (answer.json()["stage"], answer.json()["deadline_ms"]) == ("generate", 500)
        pair[0].delay(0)
        assert (await first).status_code == 200
        assert (await over_triton.ask("class=1&seed=2")).status_code == 200
        assert pair[0].made() - before == 2


async def test_requests_that_nobody_waits_for_are_dropped_from_the_servers_queue(
    pair: tuple[Served, Served],
) -> None:
    async with front(pair[0]) as over_triton:
        before = pair[0].made()
        pair[0].delay(1.0)
        endpoint = over_triton.endpoints[0]
        first = asyncio.create_task(over_triton.ask("class=1&seed=1"))
        await until(lambda: endpoint.in_flight == 1)
        await asyncio.sleep(0.3)
        gone = [asyncio.create_task(over_triton.ask(f"class=2&n={n}")) for n in (1, 2, 3)]
        await until(lambda: endpoint.in_flight == 7)
        for task in gone:
            task.cancel()
        await until(lambda: endpoint.in_flight == 1)
        pair[0].delay(0)
        assert (await first).status_code == 200
        assert (await over_triton.ask("class=1&seed=2")).status_code == 200
        assert pair[0].made() - before == 2


@contextmanager
def command_line(
    *flags: str, **environment: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen]]:
    """Run `cat-serve serve` as anybody does, until it is ready; kill it at the end if it still runs."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "cat_serve", "serve", "--port", port, *flags],
        env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
            deadline = time.monotonic() + WAIT_S
            while not _says_ready(client):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield client, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _says_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_command_line_serves_over_two_servers_and_drops_what_a_client_left_behind(
    pair: tuple[Served, Served],
) -> None:
    a, b = (served.server.grpc_url for served in pair)
    with command_line("--backend", "triton", "--triton-url", a, "--triton-url", b) as running:
        client, process = running
        expected = client.post("/generate?class=7&seed=1").content
        pair[0].send(signal.SIGKILL)
        assert client.post("/generate?class=7&seed=1").content == expected
        before = pair[1].made()
        pair[1].delay(1.0)
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as busy:
            busy.sendall(b"POST /generate?class=1 HTTP/1.1\r\nHost: test\r\n\r\n")
            time.sleep(0.4)
            for n in (1, 2):  # these wait in the server's queue when they are left
                with socket.create_connection(busy.getpeername()) as gone:
                    gone.sendall(b"POST /generate?class=2&n=%d HTTP/1.1\r\nHost: test\r\n\r\n" % n)
                    time.sleep(0.1)
            assert busy.recv(100).startswith(b"HTTP/1.1 200")
        pair[1].delay(0)
        assert pair[1].made() - before == 1
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (0, "")
    assert f"Triton {a} is not used" in log
    assert "client_gone=" in log
    assert "Traceback" not in log


def test_environment_names_the_servers_too(pair: tuple[Served, Served]) -> None:
    urls = json.dumps([served.server.grpc_url for served in pair])
    with command_line(CAT_SERVE_BACKEND="triton", CAT_SERVE_TRITON_URL=urls) as (client, _):
        card = client.get("/models").json()["models"][0]
    assert (card["backend"], card["determinism"]) == ("triton", "bytes")
