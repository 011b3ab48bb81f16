"""Real Triton servers for experiments, each on its own copy of the model repository, and what can be done to them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos.servers import ROOT
from cat_serve.manifest import MANIFEST_NAME, load_artefact
from export.triton_server.installation import find_installation
from export.triton_server.server import Ports, TritonServer

MODEL = "fashion-32"
SHORT_STALL_S = 0.3  # shorter than a server may be silent
STALL_MS = 1000  # how long that is
LONG_STALL_S = 3.0


@dataclass
class Victim:
    """A server and its repository."""

    server: TritonServer
    repository: Path

    def kill(self) -> None:
        """Kill it, and start it again on the same ports."""
        self._send(signal.SIGKILL)
        self.server.process.wait()
        time.sleep(1)  # nobody listens there for a while
        self.restart()

    def restart(self) -> None:
        self.server.restart().wait_ready()

    def leave(self) -> None:
        """Let it end politely, and start it again."""
        self._send(signal.SIGTERM)
        self.restart()

    def stall(self, seconds: float) -> None:
        """Stop it, and let it go on."""
        self._send(signal.SIGSTOP)
        time.sleep(seconds)
        self._send(signal.SIGCONT)

    def kill_engine(self) -> None:
        """Kill the process that computes; Triton itself stays, and starts no other."""
        for child in psutil.Process(self.server.process.pid).children(recursive=True):
            if "stub" in child.name():
                child.kill()

    def become_another_version(self) -> None:
        """Come back with another version of the same model, and later with the right one."""
        manifest, config = self._files()
        kept = manifest.read_text(), config.read_text()
        own = load_artefact(manifest.parent).version
        self._send(signal.SIGKILL)
        self.server.process.wait()
        manifest.write_text(kept[0] + "\n")
        config.write_text(kept[1].replace(own, load_artefact(manifest.parent).version))
        self.restart()
        time.sleep(1)
        manifest.write_text(kept[0])
        config.write_text(kept[1])
        self.kill()

    def _files(self) -> tuple[Path, Path]:
        folder = self.repository / MODEL
        return folder / "1" / MANIFEST_NAME, folder / "config.pbtxt"

    def _send(self, what: signal.Signals) -> None:
        os.kill(self.server.process.pid, what)


@contextmanager
def victims(count: int, folder: Path) -> Iterator[list[Victim]]:
    """Run so many servers of the model that ships until the block ends."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            repository = folder / f"repository-{number}"
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "model_repository", repository, ignore=ignored)
            log = stack.enter_context((folder / f"triton-{number}.log").open("wb"))
            server = TritonServer(repository, find_installation(), Ports.free(), [MODEL], log)
            made.append(Victim(stack.enter_context(server), repository))
        for victim in made:
            victim.server.wait_ready()
        yield made


def flags_for(made: list[Victim]) -> list[str]:
    """Return the flags of a front end over these servers."""
    urls = [flag for victim in made for flag in ("--triton-url", victim.server.grpc_url)]
    return [
        "--backend",
        "triton",
        "--triton-stall-ms",
        str(STALL_MS),
        "--log-level",
        "warning",
        *urls,
    ]


@dataclass(frozen=True)
class Fault:
    """What is done to a server, and what requests may be told while no other is left; 200 is always right."""

    cause: Callable[[list[Victim]], None]
    told: frozenset[int]


NOBODY, SILENT, WRONG = frozenset({503}), frozenset({503, 504}), frozenset({502, 503})

OF_ONE: dict[str, Fault] = {
    "killed and started again": Fault(lambda made: made[0].kill(), NOBODY),
    "stopped for a moment": Fault(lambda made: made[0].stall(SHORT_STALL_S), frozenset()),
    "stopped for long": Fault(lambda made: made[0].stall(LONG_STALL_S), SILENT),
    "ended politely and started again": Fault(lambda made: made[0].leave(), NOBODY),
    "its engine's process killed, then the server": Fault(lambda made: _engine_first(made[0]), WRONG),
    "another version, then its own": Fault(lambda made: made[0].become_another_version(), NOBODY),
}  # fmt: skip


def _engine_first(victim: Victim) -> None:
    victim.kill_engine()
    time.sleep(1)
    victim.kill()


def _all_of_them(made: list[Victim]) -> None:
    """Kill all at once; start them again one after the other."""
    for victim in made:
        os.kill(victim.server.process.pid, signal.SIGKILL)
    for victim in made:
        victim.server.process.wait()
    time.sleep(1)
    for victim in made:
        victim.restart()


OF_ALL: dict[str, Fault] = {"all killed and started again": Fault(_all_of_them, NOBODY)}


@contextmanager
def standing(count: int) -> Iterator[list[str]]:
    """Run so many servers; yield the flags of a front end over them."""
    with tempfile.TemporaryDirectory(prefix="cat-serve-chaos-") as folder, victims(count, Path(folder)) as made:  # fmt: skip
        yield flags_for(made)
