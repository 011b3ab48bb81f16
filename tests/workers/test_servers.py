"""A server of three workers: the same answers as one process, and one queue and one budget for all."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from tests.serving.conftest import TOY_CLASSES, write_toy
from tests.workers.processes import Server, several, until

WORKERS = 3
QUEUED = 8
POOR_IMAGES = 3
BOB = {"X-Api-Key": "bobs-own-secret-key"}
POOR = {"X-Api-Key": "a-poor-ones-secret-key"}
KEYS = f"""
bob = "{BOB["X-Api-Key"]}"
[poor]
key = "{POOR["X-Api-Key"]}"
images_per_minute = {POOR_IMAGES}
"""
OWN_OF_EACH_ANSWER = {"date", "server-timing", "content-length"}
JSON_BODY = {"Content-Type": "application/json"}
Z = [0.5, -0.25, 0.0, 1.0, 2.0, -1.0]

REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("POST", "/generate?class=1&seed=3", {}),
    "grid": ("POST", "/generate?class=1&seed=3&n=4&format=webp", {}),
    "zip": ("POST", "/generate?class=1&seed=3&n=2&response=zip", {}),
    "json": ("POST", "/generate?class=ankle+boot&seeds=4,1-2&response=json&format=jpeg", {}),
    "npy": ("POST", "/generate?class=1&seed=3&n=3&format=npy&response=image", {}),
    "mixture": ("POST", "/generate?class=0:0.25,3:0.75&seed=8&truncation_psi=0.5", {}),
    "stage": ("POST", "/generate?class=2&seed=8&stage=1", {}),
    "z": ("POST", "/generate", {"json": {"class": 2, "z": Z}}),
    "get": ("GET", "/generate?class=1&seed=3", {}),
    "unchanged": ("GET", "/generate?class=1&seed=3", {"headers": {"If-None-Match": "*"}}),
    "head": ("HEAD", "/generate?class=1&seed=3", {}),
    "permalink": ("GET", "/images/toy@VERSION/1/3.png", {}),
    "other version": ("GET", "/images/toy@0123456789ab/1/3.png", {}),
    "interpolate": ("POST", "/interpolate?class=1&class=2&seed=1&frames=5&format=gif", {}),
    "openai": ("POST", "/v1/images/generations", {"json": {"prompt": "Cat", "seed": 1}}),
    "openai models": ("GET", "/v1/models", {}),
    "openai error": ("POST", "/v1/images/generations", {"json": {"prompt": "a dog"}}),
    "classes": ("GET", "/classes", {}),
    "models": ("GET", "/models", {}),
    "document": ("GET", "/openapi.json", {}),
    "ready": ("GET", "/readyz", {}),
    "page": ("GET", "/", {}),
    "class": ("POST", "/generate?class=99", {}),
    "seed": ("POST", "/generate?class=1&seed=-1", {}),
    "n": ("POST", f"/generate?class=1&n={QUEUED + 1}", {}),
    "frames": ("POST", f"/interpolate?class=1&seed=1&seed=2&frames={QUEUED + 1}", {}),
    "parameter": ("POST", "/generate?class=1&colour=red", {}),
    "model": ("POST", "/generate?class=1&model=other", {}),
    "deadline": ("POST", "/generate?class=1", {"headers": {"X-Deadline-Ms": "soon"}}),
    "body": ("POST", "/generate", {"content": b"x" * 70_000, "headers": JSON_BODY}),
    "no json": ("POST", "/generate", {"content": b"{", "headers": JSON_BODY}),
    "address": ("GET", "/nothing", {}),
    "method": ("DELETE", "/generate", {}),
    "key": ("POST", "/generate?class=1", {"headers": {"X-Api-Key": "not-a-key-of-this-server"}}),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("several")
    write_toy(folder / "models" / "toy" / "1", TOY_CLASSES, stages=3)
    (folder / "keys.toml").write_text(KEYS)
    return {
        "model_repository": folder / "models",
        "api_keys_file": folder / "keys.toml",
        "max_images_per_request": QUEUED,
        "max_queued_images": QUEUED,
        "max_batch": 1,
        "concurrency": 1,
    }


@pytest.fixture(scope="module")
def server(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    values = dict(settings)
    folder = tmp_path_factory.mktemp("gate")
    with several(values.pop("model_repository"), folder, WORKERS, admin=True, **values) as running:
        yield running


@pytest.fixture(scope="module")
def alone(settings: dict[str, Any]) -> dict[str, httpx.Response]:
    """Return the answers of one process."""
    return asyncio.run(answers_of_one_process(settings))


async def answers_of_one_process(settings: dict[str, Any]) -> dict[str, httpx.Response]:
    app = create_app(Settings(**settings, admin_port=1), open_engine=FakeBackend)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        await app.state.service.settled.wait()
        version = app.state.service.model(None).artefact.version
        return {
            name: await client.request(method, url.replace("VERSION", version), **with_key(options))
            for name, (method, url, options) in REQUESTS.items()
        }


def with_key(options: dict[str, Any]) -> dict[str, Any]:
    headers = {"X-Request-Id": "the-same", **BOB, **options.get("headers", {})}
    return {**options, "headers": headers}


def told(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """Return what must be the same in every answer to a request."""
    headers = {k: v for k, v in answer.headers.items() if k not in OWN_OF_EACH_ANSWER}
    return answer.status_code, headers, re.sub(rb'"created":\d+', b"", answer.content)


@pytest.mark.parametrize("name", REQUESTS)
def test_three_workers_answer_as_one_process(
    server: Server, alone: dict[str, httpx.Response], name: str
) -> None:
    method, url, options = REQUESTS[name]
    version = alone["permalink"].headers["x-model"].partition("@")[2]
    expected = told(alone[name])
    with server.client() as client:
        for _ in range(2):
            url = url.replace("VERSION", version)
            assert told(client.request(method, url, **with_key(options))) == expected


def test_table_has_good_answers_and_bad_ones(alone: dict[str, httpx.Response]) -> None:
    counted = Counter(answer.status_code for answer in alone.values())
    assert counted[200] >= 15
    assert {304, 401, 404, 405, 413, 422} <= counted.keys()


def flood(server: Server, count: int, headers: dict[str, str], url: str) -> list[httpx.Response]:
    def ask(_: int) -> httpx.Response:
        with server.client() as client:
            return client.post(url, headers=headers)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def queued(server: Server) -> float:
    return server.metric('cat_serve_queued_images{model="toy"}')


def test_queue_takes_exactly_its_bound_from_all_workers_together(server: Server) -> None:
    server.close_gate()
    before = len(server.passes())
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(flood, server, 1, BOB, "/generate?class=1")
        until(lambda: len(server.passes()) > before)
        flooding = threads.submit(flood, server, 3 * QUEUED, BOB, "/generate?class=2")
        until(lambda: refused(server) == 2 * QUEUED)
        server.open_gate()
        answers = first.result() + flooding.result()
    counted = Counter(answer.status_code for answer in answers)
    assert counted == {200: QUEUED + 1, 429: 2 * QUEUED}
    late = next(answer for answer in answers if answer.status_code == 429)
    assert late.json()["limit"] == QUEUED
    assert int(late.headers["retry-after"]) >= 1
    assert len(pids_of(server, "/generate")) > 1
    assert server.metric('cat_serve_requests_total{route="/generate",status="4xx"}') >= 2 * QUEUED


def refused(server: Server) -> float:
    return server.metric('cat_serve_rejected_total{code="overloaded",route="/generate"}')


def pids_of(server: Server, route: str) -> set[str]:
    """Return which processes wrote the lines of a route's requests."""
    return set(re.findall(rf"route={route} .*pid=(\d+)", server.log))


def test_budget_is_one_for_all_workers(server: Server) -> None:
    answers = flood(server, 4 * POOR_IMAGES, POOR, "/generate?class=1")
    counted = Counter(answer.status_code for answer in answers)
    assert counted == {200: POOR_IMAGES, 429: 3 * POOR_IMAGES}
    codes = {answer.json()["code"] for answer in answers if answer.status_code == 429}
    assert codes == {"budget_exceeded"}
    assert server.metric('cat_serve_key_images_total{key="poor"}') == POOR_IMAGES


def test_client_that_leaves_frees_the_queue_of_the_engine_process(server: Server) -> None:
    server.close_gate()
    before = len(server.passes())
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(flood, server, 1, BOB, "/generate?class=1")
        until(lambda: len(server.passes()) > before)
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname or "", address.port or 0)) as gone:
            head = "POST /generate?class=0&n=6 HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n"
            gone.sendall(f"{head}X-Api-Key: {BOB['X-Api-Key']}\r\n\r\n".encode())
            until(lambda: queued(server) == 6)
        until(lambda: queued(server) == 0)
        server.open_gate()
        assert first.result()[0].status_code == 200
    assert len(server.passes()) == before + 1
    until(lambda: server.metric('cat_serve_client_gone_total{route="/generate"}') == 1)


def test_deadline_ends_in_the_queue_of_the_engine_process(server: Server) -> None:
    server.close_gate()
    before = len(server.passes())
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(flood, server, 1, BOB, "/generate?class=1")
        until(lambda: len(server.passes()) > before)
        late = flood(server, 1, {**BOB, "X-Deadline-Ms": "400"}, "/generate?class=0")[0]
        assert late.status_code in (429, 504)
        assert late.json()["code"] in ("deadline_exceeded", "overloaded")
        assert queued(server) == 0
        server.open_gate()
        first.result()
    assert len(server.passes()) == before + 1


def test_metrics_settings_and_readiness_are_on_the_admin_port(
    server: Server, settings: dict[str, Any]
) -> None:
    assert server.metric("cat_serve_workers") == WORKERS
    assert server.metric("cat_serve_ready") == 1
    config = httpx.get(f"{server.admin}/config").json()
    assert config["workers"] == {"value": WORKERS, "source": "environment"}
    assert httpx.get(f"{server.url}/metrics", headers=BOB).status_code == 404


def test_no_secret_is_on_a_command_line_and_the_socket_is_private(server: Server) -> None:
    children = server.children()
    assert len(children) >= WORKERS + 1
    assert not any("secret" in command for command in children.values())
    listening = Path("/proc/net/unix").read_text()
    folders = {Path(path) for path in re.findall(r"(/\S*cat-serve-\w+)/engine", listening)}
    assert folders
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


def test_model_is_what_the_engine_process_serves(server: Server, settings: dict[str, Any]) -> None:
    with server.client() as client:
        card = client.get("/models", headers=BOB).json()["models"][0]
    assert (card["backend"], card["determinism"], card["stages"]) == ("fake", "bytes", 3)
    assert card["limits"]["max_queued_images"] == QUEUED
