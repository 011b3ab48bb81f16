"""Both clients against servers that are killed, stopped, overloaded, slow, or send their answer drop by drop."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from cat_serve.client import AsyncClient, Client, Images, Retries
from cat_serve.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    Overloaded,
)
from tests.serving.processes import (
    ROOT,
    ended,
    free_port,
    slow_server,
    start_shipped,
    wait_ready,
)

PATIENT = Retries(attempts=200, first_s=0.1, longest_s=0.3)
ONCE = Retries(attempts=1)
SPENT_S = 60.0


@pytest.fixture(scope="module")
def address(shipped_url: str) -> str:
    return shipped_url


def test_client_asks_again_until_a_killed_server_is_back() -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", retries=PATIENT) as client:
        assert not client.ready()
        with ended(start_shipped(port)) as first:
            client.wait_until_ready(SPENT_S)
            assert client.ready()
            expected = client.generate(7, seed=1, n=2)
            first.kill()
            first.wait()
        with pytest.raises(BackendUnavailable, match="did not answer"):
            Client(f"http://127.0.0.1:{port}", retries=ONCE).generate(7)
        got: list[Images] = []
        asking = threading.Thread(target=lambda: got.append(client.generate(7, seed=1, n=2)))
        asking.start()
        with ended(start_shipped(port)) as second:
            asking.join(SPENT_S)
            assert not asking.is_alive()
            assert second.poll() is None
    assert list(got[0]) == list(expected)
    assert got[0].attempts > 1


def test_request_that_is_cut_off_by_a_kill_is_made_again(add_model: Any, repository: Path) -> None:
    add_model()
    got: list[Images] = []
    with slow_server(repository, pass_s=30) as (address, hung):
        port = httpx.URL(address).port or 0
        with Client(address, retries=PATIENT) as client:
            asking = threading.Thread(target=lambda: got.append(client.generate(1)))
            asking.start()
            time.sleep(1)  # it is in the engine now
            hung.kill()
            hung.wait()
            with ended(start_shipped(port)) as healthy:
                wait_ready(healthy, port)
                asking.join(SPENT_S)
                assert not asking.is_alive()
    assert (got[0].model, got[0].class_id) == ("fashion-32", 1)
    assert got[0].attempts > 1


def test_overload_is_waited_out_or_told(add_model: Any, repository: Path) -> None:
    add_model()
    with slow_server(repository, pass_s=0.3) as (address, _):
        outcomes: list[Any] = []

        def ask(retries: Retries) -> None:
            try:
                with Client(address, retries=retries) as client:
                    outcomes.append(client.generate(1, seed=1))
            except Overloaded as error:
                outcomes.append(error)

        def crowd(retries: Retries) -> list[Any]:
            outcomes.clear()
            threads = [threading.Thread(target=ask, args=(retries,)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SPENT_S)
            return list(outcomes)

        told = [each for each in crowd(ONCE) if isinstance(each, Overloaded)]
        assert told
        assert all(error.details["retry_after_s"] >= 1 for error in told)
        waited = crowd(PATIENT)
        assert [type(each) for each in waited] == [Images] * 6
        assert max(images.attempts for images in waited) > 1


def test_deadline_of_the_client_reaches_the_server(add_model: Any, repository: Path) -> None:
    add_model()
    with slow_server(repository, pass_s=3) as (address, _), Client(address) as client:
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            client.generate(1, deadline_s=1.0)
        assert 0.5 < time.monotonic() - began_s < 2.0
        assert caught.value.details["stage"] == "generate"
        assert caught.value.details["status"] == 504


def test_stopped_server_costs_no_more_than_the_deadline(add_model: Any, repository: Path) -> None:
    add_model()
    with slow_server(repository, pass_s=0) as (address, process):
        with Client(address, deadline_s=1.0) as client:
            client.generate(1)
            process.send_signal(signal.SIGSTOP)
            began_s = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                client.generate(1)
            assert 0.9 < time.monotonic() - began_s < 2.5
            assert caught.value.details["stage"] == "client"

        async def ask() -> None:
            async with AsyncClient(address) as asking:
                await asking.generate(1, deadline_s=0.5)

        with pytest.raises(DeadlineExceeded):
            anyio.run(ask)


DRIPS = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\nX-Endless: ",
    "silence in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
}


@contextmanager
def dripping_server(what: str) -> Iterator[str]:
    """Answer one request at once as far as `what`, which comes byte by byte and never ends."""
    leave = threading.Event()
    # a little less than the deadline: a time-out of single reads would never fire, or end twice as late
    pause_s = 0.8 if what.startswith("silence") else 0.1

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(DRIPS[what])
            while not leave.wait(pause_s):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dripping = threading.Thread(target=drip, args=(listener,))
        dripping.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            leave.set()
            dripping.join(SPENT_S)


def ask_blocking(address: str) -> None:
    with Client(address) as client:
        client.generate(1, deadline_s=1.0)


async def ask_awaiting(address: str) -> None:
    async with AsyncClient(address) as client:
        await client.generate(1, deadline_s=1.0)


@pytest.mark.parametrize("ask", [ask_blocking, lambda address: anyio.run(ask_awaiting, address)])
@pytest.mark.parametrize("what", DRIPS)
def test_answer_that_drips_in_does_not_outlast_the_deadline(
    ask: Callable[[str], None], what: str
) -> None:
    with dripping_server(what) as address:
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            ask(address)
        assert 0.9 < time.monotonic() - began_s < 1.5
        assert caught.value.details["stage"] == "client"


def test_key_that_interrupts_a_blocking_call_ends_it_and_its_request(
    add_model: Any, repository: Path
) -> None:
    """Ctrl-C reaches the main thread, which waits for another one."""
    add_model()
    script = (
        "import sys\n"
        "from cat_serve.client import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print('asking', flush=True)\n"
        "    client.generate(1, n=2)\n"
    )
    with slow_server(repository, pass_s=5) as (address, _):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, address],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with ended(process), process:  # type: ignore[arg-type]
            assert process.stdout is not None
            assert process.stdout.readline() == "asking\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            began_s = time.monotonic()
            _, said = process.communicate(timeout=SPENT_S)
            assert time.monotonic() - began_s < 2.5
            assert said.rstrip().endswith("KeyboardInterrupt")
            assert "exception was never" not in said


def test_child_of_a_fork_has_a_loop_of_its_own(address: str) -> None:
    script = (
        "import os, sys\n"
        "from cat_serve.client import Client\n"
        "with Client(sys.argv[1]) as client: client.models()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    with Client(sys.argv[1], deadline_s=10) as client:\n"
        "        os._exit(7 if client.ready() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, address],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.stdout == "7\n", result.stderr


def test_client_that_is_never_closed_does_not_keep_a_process(address: str) -> None:
    script = "import sys; from cat_serve.client import Client; print(Client(sys.argv[1]).ready())"
    result = subprocess.run(
        [sys.executable, "-c", script, address],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert result.stdout == "True\n"
