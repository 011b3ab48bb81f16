"""A real server that is watched while it is treated badly, and the count of what was tried."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.robustness.tried import COUNTS_FILE, TRIED, Tried
from tests.serving.conftest import add_model, repository, run_app, shipped, steps
from tests.serving.processes import ROOT, ended, free_port, wait_ready

__all__ = ["add_model", "repository", "run_app", "shipped", "steps"]

SERVE = (sys.executable, "-m", "cat_serve", "serve")
ANSWER_S = 10.0  # "within a second" on an idle machine; here others compute, too
IMAGE = "/generate?class=7&seed=1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many inputs were tried, and write it to the file that the environment names."""
    if not TRIED.inputs:
        return
    terminalreporter.section("inputs tried")
    terminalreporter.write_line(TRIED.as_json())
    if name := os.environ.get(COUNTS_FILE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(TRIED.as_json() + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def tried() -> Tried:
    return TRIED


@dataclass
class Watched:
    """A server process, its log, and what an image of it looks like."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    image: bytes = b""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory_mib(self) -> float:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def log_since(self, start: int = 0) -> str:
        return self.log.read_bytes()[start:].decode("utf-8", "replace")

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = httpx.get(self.address + "/metrics", timeout=ANSWER_S).text
        rows = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows)

    def require_well(self, log_start: int = 0) -> None:
        """Fail unless the server answers as ever and its log has no traceback."""
        assert self.process.poll() is None, "the server ended"
        began_s = time.perf_counter()
        with httpx.Client(base_url=self.address, timeout=ANSWER_S) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            answer = client.post(IMAGE)
        assert answer.status_code == 200
        assert answer.content == self.image
        assert time.perf_counter() - began_s < ANSWER_S
        log = self.log_since(log_start)
        assert "Traceback" not in log, log[-4000:]
        assert " ERROR " not in log, log[-4000:]


def serve(log: Path, *flags: str, **environment: str) -> Iterator[Watched]:
    """Run a server of the model that ships until the caller is done; its log must have no traceback at the end."""
    port = free_port()
    own = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")} | environment
    command = [*SERVE, "--port", str(port), "--threads", "1", *flags]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=stream
        )
    with ended(process):
        wait_ready(process, port)
        server = Watched(process, port, log)
        headers = {"X-Api-Key": own["KEY"]} if "KEY" in own else {}
        server.image = httpx.post(server.address + IMAGE, headers=headers, timeout=60).content
        yield server
        assert process.poll() is None, server.log_since()[-4000:]
        assert "Traceback" not in server.log_since(), server.log_since()[-4000:]
