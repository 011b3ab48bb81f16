"""Servers of several processes for tests that kill, stop, or flood them; all that is started here is ended here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.workers.engines import FOLDER

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 120.0
WAIT_S = 60.0
END_S = 15.0
GATED = ("tests.workers.engines",)
COMMAND_LINE = ("cat_serve", "serve")
ENDED = ("Z", "X")


@dataclass
class Server:
    """A supervisor, and what it says."""

    process: subprocess.Popen[str]
    folder: Path
    lines: list[str] = field(default_factory=list)
    url: str = ""
    admin: str = ""

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def client(self) -> httpx.Client:
        """Return a client that uses every connection once, so that its requests meet all workers."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, timeout=WAIT_S, limits=limits)

    def children(self) -> dict[int, str]:
        """Return the processes below the supervisor that live, with their command lines."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return {pid: command_of(pid) for pid in pids if is_alive(pid, self.process.pid)}

    def workers(self) -> list[int]:
        """Return the pids of the workers that wrote a line, the latest last, if they live."""
        started = re.findall(r"Started server process \[(\d+)\]", self.log)
        return [int(pid) for pid in started if is_alive(int(pid))]

    def engine(self) -> int:
        """Return the pid of the engine process, which wrote that it opened a model."""
        opened = re.findall(r"opened toy@\w+ in .* pid=(\d+)", self.log)
        return int(opened[-1])

    def passes(self) -> list[int]:
        """Return the images of every pass so far."""
        return [int(line) for line in (self.folder / "passes").read_text().split()]

    def close_gate(self) -> None:
        (self.folder / "closed").touch()

    def open_gate(self) -> None:
        (self.folder / "closed").unlink(missing_ok=True)

    def metric(self, name: str) -> float:
        """Return a metric's value, 0 if it was not counted yet."""
        with self.client() as client:
            lines = client.get(f"{self.admin or self.url}/metrics").text.splitlines()
        return next((float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(f"{name} ")), 0.0)

    def ready(self) -> int:
        with self.client() as client:
            return client.get("/readyz").status_code


def stat_of(pid: int) -> list[str] | None:
    """Return the state, the parent and more of a process; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int, parent: int | None = None) -> bool:
    """Say whether a process lives, and is a child of `parent` if that is given."""
    stat = stat_of(pid)
    return stat is not None and stat[0] not in ENDED and (parent is None or int(stat[1]) == parent)


def until(condition: Callable[[], object], why: object = "") -> None:
    """Wait until something holds, for a bounded time."""
    ends_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_s, why() if callable(why) else why
        time.sleep(0.02)


@contextmanager
def several(
    repository: Path,
    folder: Path,
    workers: int = 3,
    admin: bool = False,
    command: Sequence[str] = GATED,
    **settings: object,
) -> Iterator[Server]:
    """Run a server until the block ends, by default with a gated engine; kill what the test left of it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
    values = {"workers": workers, "port": 0, "model_repository": repository, **settings}
    if admin:
        values["admin_port"] = 0
    environment |= {f"CAT_SERVE_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment | {FOLDER: str(folder), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started can be ended, whatever comes of it
    )
    server = Server(process, folder)
    reading = threading.Thread(target=_read, args=(server,))
    reading.start()
    try:
        until(lambda: "is ready on" in server.log or process.poll() is not None)
        assert process.poll() is None, server.log
        server.url = re.search(r"is ready on (\S+)", server.log)[1]  # type: ignore[index]
        if admin:
            server.admin = re.search(r"metrics and settings are on (\S+)", server.log)[1]  # type: ignore[index]
        yield server
    finally:
        server.open_gate()
        process.terminate()  # so that it removes what it made
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reading.join(WAIT_S)


def _read(server: Server) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line.rstrip("\n"))
    server.process.stderr.close()
