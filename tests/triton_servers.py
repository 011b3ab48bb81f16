"""Real Triton servers for tests: on loopback, on free ports, ended with the test session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from export.triton_server.installation import find_installation
from export.triton_server.server import Ports, TritonServer

StartTriton = Callable[..., TritonServer]


def copy_repository(source: Path, target: Path) -> Path:
    """Copy a model repository, so that a server and a test may do what they like with it."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(source, target, ignore=ignored))


@pytest.fixture(scope="session")
def start_triton(
    project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartTriton]:
    """Return a function that starts a server and waits until it is ready.

    Its arguments: `repository` (by default a copy of the one that ships), `models` (load these only, and allow
    loading and unloading), `ports` (by default free ones), `log` (a file; by default in a temporary folder).
    """
    with ExitStack() as servers:
        started: list[TritonServer] = []

        def start(
            repository: Path | None = None,
            models: Sequence[str] | None = None,
            ports: Ports | None = None,
            log: Path | None = None,
        ) -> TritonServer:
            folder = tmp_path_factory.mktemp("triton")
            if repository is None:
                shipped = project_root / "model_repository"
                repository = copy_repository(shipped, folder / "repository")
            stream = servers.enter_context((log or folder / "server.log").open("wb"))
            server = TritonServer(
                repository, find_installation(), ports or Ports.free(), models, stream
            )
            servers.enter_context(server)
            started.append(server)
            return server.wait_ready()

        yield start
        for server in started:  # all at once: each takes seconds to end
            if server.process.poll() is None:
                server.process.terminate()


@pytest.fixture(scope="session")
def triton_server(start_triton: StartTriton) -> TritonServer:
    """A server of the repository that ships; its models cannot be changed, and tests must not end it."""
    return start_triton()
