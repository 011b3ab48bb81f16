"""Toy models without an engine, the shipped model, and applications that run inside the test."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.cli import main
from cat_serve.contract import Batch
from cat_serve.images import encode_png, grid
from cat_serve.manifest import GOLDEN_NAME, Artefact, Golden, Manifest, load_artefact, record
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from tests.serving.generating import Generate
from tests.serving.processes import shipped_server

TOY_CLASSES = ("Cat", "Sea_lion", "crane", "Ankle boot", "crane")

AddModel = Callable[..., Artefact]


def write_toy(folder: Path, class_names: tuple[str, ...], **changes: Any) -> Artefact:
    """Write a version folder whose golden images are the fake engine's."""
    golden = Golden(
        GOLDEN_NAME, (0, 1, len(class_names) - 1), (0, 1, 2), (1.0, 0.5, 0.0), {"fp32": 0}
    )
    values: dict[str, Any] = {
        "model": folder.parent.name,
        "files": {},
        "class_names": class_names,
        "z_shape": (6,),
        "image_size": (8, 12),
        "max_batch": 4,
        "golden": golden,
    }
    manifest = Manifest(**(values | changes))
    folder.mkdir(parents=True, exist_ok=True)
    output = FakeBackend(Artefact(folder, manifest, "")).run(golden.batch(manifest.z_shape))
    (folder / GOLDEN_NAME).write_bytes(encode_png(grid(output.images, columns=1)))
    files = {GOLDEN_NAME: record(folder / GOLDEN_NAME)}
    Manifest(**(values | {"files": files} | changes)).save(folder)
    return load_artefact(folder)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def add_model(repository: Path) -> AddModel:
    """Add a version of a toy model to the repository."""

    def add(
        name: str = "toy",
        class_names: tuple[str, ...] = TOY_CLASSES,
        version: str = "1",
        **changes: Any,
    ) -> Artefact:
        return write_toy(repository / name / version, class_names, **changes)

    return add


@pytest.fixture(scope="session")
def shipped(project_root: Path) -> Artefact:
    return load_artefact(project_root / "model_repository" / "fashion-32" / "1")


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """The address of a server of the model that ships, in a process of its own; tests must not end or overload it."""
    with shipped_server() as address:
        yield address


@pytest.fixture(scope="session")
def server(shipped_url: str) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=shipped_url, timeout=60) as client:
        yield client


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    """Run `cat-serve generate` in this process; return what its last line says."""

    def run(*flags: str) -> dict[str, Any]:
        code = main(["generate", "--threads", "1", *flags])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        report: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
        return report

    return run


class Steps:
    """Holds every forward pass of an engine back until the test allows it.

    Use it as a fake engine's `before`.
    """

    WAIT_S = 20

    def __init__(self) -> None:
        self.entered = 0
        self._allowed = threading.Semaphore(0)

    def __call__(self, batch: Batch) -> None:
        self.entered += 1
        assert self._allowed.acquire(timeout=self.WAIT_S)

    def allow(self, passes: int = 1) -> None:
        self._allowed.release(passes)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, for a bounded time."""
        async with asyncio.timeout(self.WAIT_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def until_entered(self, passes: int) -> None:
        """Wait until so many passes have begun."""
        await self.until(lambda: self.entered >= passes)


@pytest.fixture
def steps() -> Iterator[Steps]:
    made = Steps()
    yield made
    made.allow(10_000)


@dataclass
class Running:
    """An application in this process, its engines by model name, and a client to it."""

    app: Any
    client: httpx.AsyncClient
    service: Any
    engines: dict[str, FakeBackend]

    @property
    def engine(self) -> FakeBackend:
        return next(iter(self.engines.values()))


RunApp = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def run_app(repository: Path, add_model: AddModel) -> RunApp:
    """Run the application on fake engines; the repository has one toy model unless the test made others."""

    @asynccontextmanager
    async def run(
        wait: bool = True, prepare: Any = None, **settings: Any
    ) -> AsyncIterator[Running]:
        if not any(repository.iterdir()):
            add_model()
        engines: dict[str, FakeBackend] = {}

        def open_engine(artefact: Artefact) -> FakeBackend:
            engine = engines[artefact.manifest.model] = FakeBackend(artefact)
            if prepare is not None:
                prepare(engine)
            return engine

        app = create_app(Settings(model_repository=repository, **settings), open_engine=open_engine)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            if wait:
                await app.state.service.settled.wait()
            yield Running(app, client, app.state.service, engines)

    return run


@pytest.fixture
async def running(run_app: RunApp, anyio_backend: str) -> AsyncIterator[Running]:
    async with run_app() as application:
        yield application
