"""Server processes for tests that kill, stop, restart or overload one; each ends only what it started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0

# A server on the fake engine whose passes take a while, after warm-up and golden images.
SLOW_SERVER = """
import itertools, sys, time
from pathlib import Path
from cat_serve.backends.fake import FakeBackend
from cat_serve.repository import load_models
from cat_serve.settings import Settings
from cat_serve.web.server import serve

repository, port, pass_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
passes = itertools.count(1)
slow = lambda batch: time.sleep(pass_s if next(passes) > 2 else 0)
settings = Settings(
    port=port, concurrency=1, max_batch=1, max_images_per_request=2, max_queued_images=2
)
serve(settings, load_models(repository), lambda artefact: FakeBackend(artefact, before=slow))
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(*command: str) -> subprocess.Popen[bytes]:
    """Start Python with this command in the root of the project."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_shipped(port: int) -> subprocess.Popen[bytes]:
    """Start a server of the model that ships."""
    return start("-m", "cat_serve", "serve", "--port", str(port), "--threads", "1")


def wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server is ready, for a bounded time."""
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        assert process.poll() is None, f"the server left with {process.returncode}"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill a process at the end, unless it has ended."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def shipped_server() -> Iterator[str]:
    """Run a server of the model that ships; yield its address."""
    port = free_port()
    with ended(start_shipped(port)) as process:
        wait_ready(process, port)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def slow_server(repository: Path, pass_s: float) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server that makes one image at a time, each in `pass_s`, and lets two wait."""
    port = free_port()
    with ended(start("-c", SLOW_SERVER, str(repository), str(port), str(pass_s))) as process:
        wait_ready(process, port)
        yield f"http://127.0.0.1:{port}", process
