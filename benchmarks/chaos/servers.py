"""Real `cat-serve serve` processes to mistreat; each is ended by whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cat_serve.errors import BackendUnavailable

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND_LINE = ("-m", "cat_serve")
START_S = 120.0
STOP_S = 60.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """One running server.

    Attributes:
        log_path: everything it said.
    """

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    watched: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.watched = psutil.Process(self.process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def is_ready(self) -> bool:
        """Ask /readyz."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, seconds: float = START_S) -> float:
        """Wait until it is ready; return how long that took, in seconds.

        Raises:
            BackendUnavailable: it left, or takes too long.
        """
        began_s = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None:
                raise BackendUnavailable(f"The server left: {self.log[-2000:]}")
            if time.monotonic() - began_s > seconds:
                raise BackendUnavailable(f"The server was not ready within {seconds:.0f} s.")
            time.sleep(0.05)
        return time.monotonic() - began_s

    def terminate(self) -> int:
        """Send SIGTERM, and return the exit code.

        Raises:
            BackendUnavailable: it did not leave.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise BackendUnavailable(f"The server did not leave within {STOP_S:.0f} s.") from error


@contextmanager
def running(
    *flags: str, command: Sequence[str] = COMMAND_LINE, wait: bool = True
) -> Iterator[Server]:
    """Run a server until the block ends.

    Args:
        flags: of `cat-serve serve`.
        command: what Python is to run; the flags come after it.
    """
    port = free_port()
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("CAT_SERVE_")}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="cat-serve-chaos-") as folder:
        log_path = Path(folder) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command, "serve", "--port", str(port), *flags],
                cwd=ROOT, env=inherited, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            server = Server(process, port, log_path)
            if wait:
                server.wait_ready()
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
