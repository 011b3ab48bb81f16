"""SIGTERM to real servers under load: what had been asked is answered, wholly; the server leaves with 0."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.chaos.leaving import Departure, departed, leaving
from benchmarks.chaos.load import Answer
from benchmarks.chaos.servers import Server, running
from benchmarks.chaos.traffic import Ask

pytestmark = pytest.mark.anyio

CONNECTIONS = 24
BUFFERS_BYTES = 4_200_000  # the most that Linux keeps of what a socket sends, unless told otherwise
ASKED = "/generate?class=1&seed=3"


@pytest.fixture
def server() -> Iterator[Server]:
    with running("--threads", "1", "--log-level", "warning") as server:
        yield server


@contextmanager
def connections(server: Server, count: int) -> Iterator[list[http.client.HTTPConnection]]:
    opened = [
        http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(count)
    ]
    yield opened
    for connection in opened:
        connection.close()


def statuses(asked: list[http.client.HTTPConnection]) -> list[int]:
    """Return the status of every answer that is read to its end; 0 where there is none."""
    found = []
    for connection in asked:
        try:
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
        except (OSError, http.client.HTTPException):
            found.append(0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "new"])
def test_requests_sent_just_before_sigterm_are_answered(server: Server, kept: bool) -> None:
    """On connections that were idle until then, and on those that the server has not even accepted."""
    with connections(server, CONNECTIONS) as opened:
        if kept:
            for connection in opened:
                connection.request("GET", "/healthz")
            assert set(statuses(opened)) == {200}
        for connection in opened:
            connection.request("POST", ASKED)
        server.process.send_signal(signal.SIGTERM)
        assert statuses(opened) == [200] * CONNECTIONS
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_slow_reader_gets_the_rest_of_a_large_answer_after_sigterm() -> None:
    """The answer is larger than the buffers of both sockets, so the server must stay for it."""
    n = 1200
    query = f"class=1&seed=1&n={n}&format=npy&response=json"
    flags = ("--max-images-per-request", str(n), "--max-queued-images", str(2 * n))
    with running("--threads", "1", *flags) as server, connections(server, 1) as (connection,):
        connection.sock = slow_socket(server.port)
        connection.request("POST", f"/generate?{query}")
        answer = connection.getresponse()
        got = answer.read(1000)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert server.process.poll() is None
        rest = answer.read()
        assert len(rest) > BUFFERS_BYTES
        assert len(json.loads(got + rest)["images"]) == n
        assert server.process.wait(30) == 0


def slow_socket(port: int) -> socket.socket:
    """Return a connection that takes little before it is read."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.settimeout(120)
    opened.connect(("127.0.0.1", port))
    return opened


@pytest.mark.slow
async def test_sigterm_under_load_fails_no_request() -> None:
    result = await leaving(2)
    assert result.passed, result.promises
    assert result.faults == 2
    assert min(result.figures["in_flight"]) >= 5


@pytest.mark.slow
async def test_server_that_breaks_off_what_is_in_flight_is_found_out() -> None:
    result = await leaving(1, "without grace", "--shutdown-grace-s", "0")
    assert "requests that failed" in [p.what for p in result.promises if not p.held]
    assert result.lost > 0


def departure(*answers: Answer, code: int = 0, log: str = "") -> Departure:
    """Return a departure whose signal came at second 10, beside five requests that went well."""
    well = [answer(sent_s=9, status=200) for _ in range(5)]
    return Departure(10.0, code, 1.0, log, [*well, *answers])


def answer(sent_s: float, status: int | None, begun: bool = False) -> Answer:
    ask = Ask("one image", "POST", ASKED)
    return Answer(ask, sent_s, 11.0, status, error="ClientOSError", begun=begun)


@pytest.mark.parametrize(
    ("case", "broken"),
    [
        (departure(), None),
        (departure(answer(9, None)), "requests that failed"),
        (departure(answer(9, 503)), "requests that failed"),
        (departure(answer(10.5, None)), None),  # turned away: it was never taken
        (departure(answer(10.5, None, begun=True)), "requests that failed"),
        (departure(answer(10.5, 500)), "requests that failed"),
        (departure(code=1), "exit codes other than 0"),
        (departure(log="Traceback (most recent call last):\n  File\nOSError: x"), "errors in the log"),
    ],
)  # fmt: skip
def test_what_counts_as_a_broken_promise(case: Departure, broken: str | None) -> None:
    result = departed("leaving", [case], 1.0)
    assert [p.what for p in result.promises if not p.held] == ([broken] if broken else [])
    assert result.passed == (broken is None)
