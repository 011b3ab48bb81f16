"""Processes that are killed and told to leave, under load: who else suffers, and what comes back by itself."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.workers.processes import WAIT_S, Server, is_alive, several, until

pytestmark = pytest.mark.slow

AT_ONCE_S = 5.0  # on a machine that is busy with the load
CLIENTS = 8
LIMITS = {"max_batch": 1, "concurrency": 1}


@pytest.fixture
def start(repository: Path, add_model: Any, tmp_path: Path) -> Any:
    add_model()
    (tmp_path / "gate").mkdir()

    def started(workers: int = 3, **settings: Any) -> Any:
        return several(repository, tmp_path / "gate", workers, **{**LIMITS, **settings})

    return started


@dataclass
class Client:
    """One connection that is used again and again; which worker has it stands in the log."""

    name: str
    url: str
    answered: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        with httpx.Client(base_url=self.url, timeout=WAIT_S) as client:
            while not stop.is_set():
                number = len(self.answered) + len(self.broken)
                headers = {"X-Request-Id": f"{self.name}-{number}"}
                try:
                    self.answered.append(
                        client.post("/generate?class=1&seed=1", headers=headers).status_code
                    )
                except httpx.TransportError as error:
                    self.broken.append(f"{self.name}-{number}: {error!r}")

    def worker(self, log: str) -> int | None:
        """Return the pid of the worker that answered it last."""
        lines = re.findall(rf"request_id={self.name}-\d+ .* pid=(\d+)", log)
        return int(lines[-1]) if lines else None


@contextmanager
def load(url: str, count: int = CLIENTS) -> Iterator[list[Client]]:
    """Let clients ask without a pause while the block runs."""
    clients, stop = [Client(f"client{i}", url) for i in range(count)], threading.Event()
    with ThreadPoolExecutor(count) as threads:
        running = [threads.submit(client.run, stop) for client in clients]
        try:
            until(lambda: all(len(client.answered) >= 2 for client in clients))
            yield clients
        finally:
            stop.set()
        for each in running:
            each.result()


def ask(server: Server) -> httpx.Response:
    with server.client() as client:
        return client.post("/generate?class=1")


def was_broken_off(asked: Future[httpx.Response]) -> bool:
    """Say whether a request ended without its image: with an answer if there was time for one."""
    if isinstance(asked.exception(), httpx.TransportError):
        return True
    return asked.result().status_code >= 500


@contextmanager
def held(server: Server, count: int) -> Iterator[list[Future[httpx.Response]]]:
    """Have so many requests in queue and engine when the block begins."""
    server.close_gate()
    waiting = 'cat_serve_queued_images{model="toy"}'
    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(ask, server) for _ in range(count)]
        until(lambda: server.metric(waiting) == count - 1)
        yield asked


def test_worker_that_is_killed_breaks_its_own_connections_only_and_comes_back(start: Any) -> None:
    with start() as server:
        before = set(server.workers())
        assert len(before) == 3
        with load(server.url) as clients:
            homes = {client.name: client.worker(server.log) for client in clients}
            victim = homes[clients[0].name]
            assert victim in before
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(set(server.workers()) - before) == 1)
            more = [len(client.answered) for client in clients]
            until(lambda: all(len(c.answered) > n for c, n in zip(clients, more, strict=True)))
        for client in clients:
            assert set(client.answered) == {200}
            assert len(client.broken) == (1 if homes[client.name] == victim else 0), client.broken
        until(lambda: server.metric("cat_serve_workers") == 3)
        assert f"(pid {victim}) ended with -9" in server.log


def test_engine_process_that_is_killed_fails_what_it_had_and_comes_back(start: Any) -> None:
    with start() as server:
        with held(server, 4) as asked:
            os.kill(server.engine(), signal.SIGKILL)
            killed_s = time.monotonic()
            answers = [each.result() for each in asked]
            assert time.monotonic() - killed_s < AT_ONCE_S
        assert [answer.status_code for answer in answers] == [502] * 4
        assert {answer.json()["code"] for answer in answers} == {"backend_error"}
        assert server.ready() == 503  # the gate is closed, so no engine can have begun anew
        refused = ask(server)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/classes").status_code == 200
        server.open_gate()
        until(lambda: server.ready() == 200)
        assert ask(server).status_code == 200
        assert (
            server.metric('cat_serve_rejected_total{code="backend_error",route="/generate"}') == 4
        )


def test_engine_process_that_is_killed_under_load_is_the_only_failure(start: Any) -> None:
    with start() as server, load(server.url) as clients:
        os.kill(server.engine(), signal.SIGKILL)
        until(lambda: any({502, 503} & set(client.answered) for client in clients))
        more = [client.answered.count(200) for client in clients]
        until(
            lambda: all(c.answered.count(200) > n for c, n in zip(clients, more, strict=True)),
            lambda: server.log,
        )
        assert not any(client.broken for client in clients)
        assert {code for client in clients for code in client.answered} <= {200, 502, 503}


def test_sigterm_lets_all_that_is_in_flight_finish(start: Any) -> None:
    with start(admin=True) as server:
        with held(server, 12) as asked:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{server.admin}/readyz").status_code == 503)
            until(lambda: server.log.count("Shutting down") == 3)
            assert server.process.poll() is None
            server.open_gate()
            assert [each.result().status_code for each in asked] == [200] * 12
        assert server.process.wait(WAIT_S) == 0
    assert "Traceback" not in server.log
    assert "Exception" not in server.log


def test_delay_shows_503_at_readyz_of_every_worker_while_all_serve_on(start: Any) -> None:
    with start(shutdown_delay_s=WAIT_S) as server, load(server.url) as clients:
        server.process.send_signal(signal.SIGTERM)
        told_s = time.monotonic()
        until(lambda: server.ready() == 503)
        assert time.monotonic() - told_s < AT_ONCE_S
        assert {server.ready() for _ in range(12)} == {503}
        more = [len(client.answered) for client in clients]
        until(lambda: all(len(c.answered) > n for c, n in zip(clients, more, strict=True)))
        assert {code for client in clients for code in client.answered} == {200}
        assert not any(client.broken for client in clients)
        server.process.send_signal(signal.SIGTERM)  # skips what is left of the delay
        assert server.process.wait(WAIT_S / 2) == 0


def test_interrupt_at_the_terminal_leaves_like_sigterm(start: Any) -> None:
    with start() as server:
        with held(server, 3) as asked:
            os.killpg(server.process.pid, signal.SIGINT)  # a terminal sends it to all
            until(lambda: server.log.count("Shutting down") == 3)
            server.open_gate()
            assert [each.result().status_code for each in asked] == [200] * 3
        assert server.process.wait(WAIT_S) == 0
    assert "Traceback" not in server.log


def test_second_interrupt_breaks_off(start: Any) -> None:
    with start() as server, held(server, 2) as asked:
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.log.count("Shutting down") == 3)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_S / 2) == 0
        assert not server.children()
        assert all(map(was_broken_off, asked))


def test_nothing_outlives_a_supervisor_that_was_killed(start: Any) -> None:
    with start() as server, held(server, 2) as asked:
        children = server.children()
        assert len(children) >= 4
        private = set(re.findall(r"(/\S*cat-serve-\w+)/engine", Path("/proc/net/unix").read_text()))
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(is_alive, children)), lambda: children)
        assert all(map(was_broken_off, asked))
        until(lambda: any(not Path(folder).exists() for folder in private))


def test_hangup_of_the_supervisor_reloads_for_all_workers(start: Any, add_model: Any) -> None:
    with start() as server, load(server.url) as clients:
        new = add_model(version="2", source={"run": "two"}).version
        server.process.send_signal(signal.SIGHUP)

        def versions() -> set[str]:
            with server.client() as client:
                return {client.get("/models").json()["models"][0]["version"] for _ in range(9)}

        until(lambda: versions() == {new}, lambda: server.log)
        more = [len(client.answered) for client in clients]
        until(lambda: all(len(c.answered) > n for c, n in zip(clients, more, strict=True)))
        assert {code for client in clients for code in client.answered} == {200}
        assert ask(server).headers["x-model"] == f"toy@{new}"


def test_stopped_engine_process_is_seen_at_readyz_and_goes_on(start: Any) -> None:
    with start() as server:
        engine = server.engine()
        os.kill(engine, signal.SIGSTOP)
        try:
            until(lambda: server.ready() == 503)
            with server.client() as client:
                late = client.post("/generate?class=1", headers={"X-Deadline-Ms": "300"})
            assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        finally:
            os.kill(engine, signal.SIGCONT)
        until(lambda: server.ready() == 200)
        assert ask(server).status_code == 200
