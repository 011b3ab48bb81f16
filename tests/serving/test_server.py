"""A real server process with the model that ships here, over a real socket."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from cat_serve.manifest import Artefact
from cat_serve.web.server import Server, bind

START_S = 30.0
STOP_S = 15.0

SLOW_SERVER = """
import sys, time
from pathlib import Path
from cat_serve.backends.fake import FakeBackend
from cat_serve.repository import load_models
from cat_serve.settings import Settings
from cat_serve.web.server import serve

repository, port, seen = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
passes = 0

def slow(batch):
    global passes
    passes += 1
    if passes > 2:  # warm-up and golden images
        with seen.open("a") as rows:
            rows.write("x" * len(batch))
        time.sleep(0.5)

settings = Settings(port=port, concurrency=3)
serve(settings, load_models(repository), lambda artefact: FakeBackend(artefact, before=slow))
"""

ONE_REQUEST = """
import asyncio, sys
import httpx
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

async def main():
    app = create_app(Settings())
    async with app.router.lifespan_context(app):
        await app.state.service.settled.wait()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/generate?class=7")
            assert answer.status_code == 200, answer.text

asyncio.run(main())
assert "onnxruntime" in sys.modules
heavy = {"torch", "onnx", "tensorrt", "diffusers", "safetensors"} & sys.modules.keys()
sys.exit(str(heavy) if heavy else 0)
"""


@dataclass
class Process:
    """A server of its own, and where it listens."""

    process: subprocess.Popen[str]
    client: httpx.Client
    started_s: float

    def stop(self) -> tuple[int, str, str]:
        """Send SIGTERM; return exit code, stdout and stderr."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=STOP_S)
        return self.process.returncode, out, err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_ready(process: subprocess.Popen[str], client: httpx.Client) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server left: {process.communicate()[1]}")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


@contextmanager
def server(root: Path, port: int, *command: str) -> Iterator[Process]:
    """Run a server until it is ready; kill it at the end if the test did not stop it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=STOP_S) as client:
            wait_ready(process, client)
            yield Process(process, client, time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def shipped_server(root: Path, *flags: str) -> Iterator[Process]:
    port = free_port()
    with server(root, port, "-m", "cat_serve", "serve", "--port", str(port), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def client(project_root: Path) -> Iterator[httpx.Client]:
    with shipped_server(project_root) as running:
        yield running.client


def pixels(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_same_request_gives_the_same_bytes(client: httpx.Client, shipped: Artefact) -> None:
    answers = [client.post("/generate?class=7&seed=1&truncation_psi=0.7") for _ in range(2)]
    assert answers[0].content == answers[1].content
    image = Image.open(io.BytesIO(answers[0].content))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
    assert answers[0].headers["x-model"] == f"fashion-32@{shipped.version}"


def test_seeds_and_classes_give_different_images(client: httpx.Client) -> None:
    images = {
        pixels(client.post(f"/generate?class={class_id}&seed={seed}")).tobytes()
        for class_id in range(10)
        for seed in range(3)
    }
    assert len(images) == 30


def test_every_class_goes_by_name_and_index(client: httpx.Client) -> None:
    listed = client.get("/classes").json()["models"][0]["classes"]
    assert len(listed) == 10
    for entry in listed:
        by_index = client.post("/generate", params={"class": entry["index"], "seed": 5})
        by_name = client.post("/generate", json={"class": entry["name"].upper(), "seed": 5})
        assert by_index.headers["x-class"] == str(entry["index"])
        assert by_index.content == by_name.content


def test_psi_zero_makes_all_seeds_equal(client: httpx.Client) -> None:
    a, b = (pixels(client.post(f"/generate?class=3&seed={s}&truncation_psi=0")) for s in (1, 2))
    assert np.array_equal(a, b)


def test_class_207_is_refused_with_the_ten_classes(client: httpx.Client) -> None:
    answer = client.post("/generate?class=207")
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["got"]) == (422, "unknown_class", 207)
    assert [entry["index"] for entry in problem["classes"]] == list(range(10))
    assert all(entry["name"] in problem["detail"] for entry in problem["classes"])
    assert "cat-m2-256" in problem["hint"]


def test_parallel_requests_get_their_own_images(client: httpx.Client) -> None:
    expected = [client.post(f"/generate?class={i % 10}&seed={i}").content for i in range(16)]
    got: dict[int, bytes] = {}

    def ask(i: int) -> None:
        got[i] = httpx.post(client.base_url.join(f"/generate?class={i % 10}&seed={i}")).content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(16)] == expected


def test_kept_connections_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, 40 ms a request."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_sigterm_is_seen_at_once_and_the_server_leaves_cleanly(project_root: Path) -> None:
    with shipped_server(project_root, "--shutdown-delay-s", "1") as running:
        running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 0.5
        while (answer := running.client.get("/readyz")).status_code == 200:
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()["phase"]) == (503, "stopping")
        assert running.client.post("/generate?class=1").status_code == 200
        out, err = running.process.communicate(timeout=STOP_S)
        assert running.process.returncode == 0
    assert out == ""
    assert "curl -X POST 'http://127.0.0.1:" in err
    assert "Traceback" not in err


def test_requests_in_flight_finish_after_sigterm(
    project_root: Path, add_model: Any, repository: Path, tmp_path: Path
) -> None:
    add_model()
    port, seen = free_port(), tmp_path / "seen"
    seen.touch()
    answers: list[int] = []
    arguments = ("-c", SLOW_SERVER, str(repository), str(port), str(seen))
    with server(project_root, port, *arguments) as running:
        address = running.client.base_url.join("/generate?class=1")
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(address).status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + START_S
        while seen.stat().st_size < 3:  # all are in the engine
            assert time.monotonic() < deadline
            time.sleep(0.01)
        code, _, err = running.stop()
        for thread in threads:
            thread.join()
    assert answers == [200, 200, 200]
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.anyio
async def test_connection_that_came_in_the_last_moment_does_not_hold_up_the_end(
    run_app: Any, steps: Any
) -> None:
    """asyncio may hand a connection over after uvicorn has told all that it knows to close."""
    async with run_app(concurrency=1) as running:
        running.engine.before = steps
        config = uvicorn.Config(running.app, log_config=None, lifespan="off", timeout_keep_alive=60)
        config.load()
        server = Server(config, running.service, 0.0)
        with bind("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            await steps.until(lambda: server.started)
            port = listener.getsockname()[1]
            asking = asyncio.create_task(one_answer(*await asyncio.open_connection(port=port)))
            await steps.until_entered(1)
            server.leave()
            await asyncio.sleep(0.3)  # it waits for that request now

            ours, theirs = socket.socketpair()
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(
                lambda: config.http_protocol_class(
                    config=config, server_state=server.server_state, app_state={}
                ),
                theirs,
            )
            late = asyncio.create_task(one_answer(*await asyncio.open_connection(sock=ours)))
            steps.allow(100)
            async with asyncio.timeout(STOP_S):
                assert b" 200 OK" in await asking
                await late
                await serving


async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask for an image on a connection that is to be kept; return all until it is closed."""
    writer.write(b"POST /generate?class=1 HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


def test_serving_loads_no_training_framework(project_root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ONE_REQUEST],
        cwd=project_root,
        env={k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_model_that_misses_its_golden_images_ends_the_server(
    project_root: Path, add_model: Any, repository: Path
) -> None:
    add_model()
    script = SLOW_SERVER.replace("before=slow", "after=lambda a: type(a)(a.images ^ 1, a.ok)")
    result = subprocess.run(
        [sys.executable, "-c", script, str(repository), str(free_port()), "unused"],
        cwd=project_root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "does not make its golden images" in result.stderr
