"""The admin port: what is on it, what is not on the public one then, and that both leave in order."""

from __future__ import annotations

import re
import signal
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
import pytest
import uvicorn
from fastapi import FastAPI

from cat_serve.errors import MissingDependency
from cat_serve.settings import Settings
from cat_serve.web.server import AdminServer, bind, serve

WAIT_S = 20.0
SECRET = "bobs-own-secret-key"

# Passes after warm-up and golden images take half a second.
SERVER = """
import itertools, sys, time
from pathlib import Path
from cat_serve.backends.fake import FakeBackend
from cat_serve.repository import load_models
from cat_serve.settings import Settings
from cat_serve.web.server import serve

passes = itertools.count()
slow = lambda batch: time.sleep(0.5 if next(passes) > 1 else 0)
settings = Settings(
    port=0, admin_port=0, shutdown_delay_s=float(sys.argv[2]), api_keys="bob=bobs-own-secret-key"
)
serve(settings, load_models(Path(sys.argv[1])), lambda artefact: FakeBackend(artefact, before=slow))
"""


@dataclass
class Running:
    process: subprocess.Popen[str]
    public: str
    admin: str

    def ask(self) -> httpx.Response:
        return httpx.post(
            f"{self.public}/generate?class=1", headers={"X-Api-Key": SECRET}, timeout=WAIT_S
        )

    def metrics(self) -> str:
        return httpx.get(f"{self.admin}/metrics", timeout=WAIT_S).text


@contextmanager
def running(root: Path, repository: Path, delay_s: float = 0.0) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(repository), str(delay_s)],
        cwd=root, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = ""
    try:
        assert process.stderr is not None
        while "is ready on" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        admin = re.search(r"metrics and settings are on (\S+)", seen)
        public = re.search(r"is ready on (\S+)", seen)
        assert admin
        assert public
        yield Running(process, public[1], admin[1])
    finally:
        process.kill()
        process.communicate()


def test_admin_port_has_what_operators_need_and_no_key_is_asked_for(
    project_root: Path, repository: Path, add_model: Any
) -> None:
    add_model()
    with running(project_root, repository) as server:
        assert server.ask().status_code == 200
        assert 'cat_serve_images_total{model="toy"} 1.0' in server.metrics()
        for path in ("/healthz", "/readyz"):
            assert httpx.get(server.admin + path).status_code == 200
        config = httpx.get(f"{server.admin}/config")
        assert SECRET not in config.text
        assert config.json()["api_keys"]["value"] == "**********"
        assert config.json()["shutdown_delay_s"]["value"] == 0
        for path in ("/generate?class=1", "/classes", "/docs", "/openapi.json"):
            assert httpx.get(server.admin + path).status_code in (404, 405)
        missing = httpx.get(f"{server.public}/metrics", headers={"X-Api-Key": SECRET})
        assert missing.status_code == 404
        refused = httpx.get(f"{server.admin}/metrics?x=1")
        assert (refused.status_code, refused.json()["code"]) == (422, "unknown_parameter")


def test_both_ports_say_503_while_the_public_one_serves_on(
    project_root: Path, repository: Path, add_model: Any
) -> None:
    add_model()
    with running(project_root, repository, delay_s=2 * WAIT_S) as server:
        server.process.send_signal(signal.SIGTERM)
        ends_s = time.monotonic() + WAIT_S / 2
        for address in (server.public, server.admin):
            while httpx.get(f"{address}/readyz").status_code == 200:
                assert time.monotonic() < ends_s
        assert httpx.get(f"{server.admin}/healthz").status_code == 200
        assert "cat_serve_ready 0.0" in server.metrics()
        assert server.ask().status_code == 200
        server.process.send_signal(signal.SIGTERM)  # the second one skips what is left of the delay
        assert server.process.wait(WAIT_S) == 0
    for address in (server.public, server.admin):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")


def test_admin_port_answers_until_the_last_request_is_done(
    project_root: Path, repository: Path, add_model: Any
) -> None:
    add_model()
    answers: list[int] = []
    with running(project_root, repository) as server:
        asking = threading.Thread(target=lambda: answers.append(server.ask().status_code))
        asking.start()
        ends_s = time.monotonic() + WAIT_S
        while "cat_serve_passes_in_flight{model=\"toy\"} 1.0" not in server.metrics():  # fmt: skip
            assert time.monotonic() < ends_s
        server.process.send_signal(signal.SIGTERM)
        while "cat_serve_ready 1.0" in (text := server.metrics()):
            assert time.monotonic() < ends_s
        assert 'cat_serve_passes_in_flight{model="toy"} 1.0' in text
        assert server.process.wait(WAIT_S) == 0
        asking.join()
    assert answers == [200]


def test_admin_port_that_is_taken_is_told_by_its_name(add_model: Any) -> None:
    artefact = add_model()
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MissingDependency, match=f"Port {port}") as caught:
            serve(Settings(port=0, admin_port=port), {"toy": artefact})
    assert "--admin-port" in str(caught.value)
    assert "CAT_SERVE_ADMIN_PORT" in str(caught.value)


def test_admin_port_is_loopback_unless_told() -> None:
    settings = Settings()
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", None)


def test_signals_are_the_public_servers() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with AdminServer(uvicorn.Config(FastAPI())).capture_signals():
        assert {each: signal.getsignal(each) for each in before} == before
