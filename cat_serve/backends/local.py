"""An engine inside this process as the service asks for it: its passes run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cat_serve.backends.base import Backend, StudioBackend, no_studio
from cat_serve.contract import Output, Precision
from cat_serve.deadlines import Deadline
from cat_serve.golden import check_golden, check_studio_golden
from cat_serve.manifest import Artefact, Determinism

BackendFactory = Callable[[Artefact], Backend]

T = TypeVar("T")


class LocalEngine:
    """See `Engine`; owns the backend and the threads in which it computes.

    Args:
        backend: a model, or its studio.
        threads: as many passes may run at the same time.
    """

    has_queue = False

    def __init__(self, backend: Backend | StudioBackend, threads: int) -> None:
        self.name = backend.name
        self.artefact: Artefact = backend.artefact
        self.precision: Precision = backend.precision
        self._backend = backend
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="engine")

    @classmethod
    async def open(
        cls, open_backend: BackendFactory, artefact: Artefact, threads: int
    ) -> LocalEngine:
        """Load, warm up and prove a model.

        Raises:
            CatServeError: see `open_backend` and `check_golden`.
        """
        backend = await asyncio.to_thread(open_backend, artefact)
        engine = cls(backend, threads)
        try:
            await engine._in_thread(lambda: check_golden(backend))
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def determinism(self) -> Determinism:
        return self._backend.determinism

    @property
    def studio_determinism(self) -> Determinism | None:
        return getattr(self._backend, "studio_determinism", None)

    async def open_studio(self) -> LocalEngine:
        """See `Engine.open_studio`."""
        if self.studio_determinism is None:
            manifest = self.artefact.manifest
            raise no_studio(manifest.model, manifest.why_no_studio)
        backend: Any = self._backend
        studio: StudioBackend = await asyncio.to_thread(backend.open_studio)
        engine = LocalEngine(studio, self._count)
        try:
            await engine._in_thread(lambda: check_studio_golden(studio))
        except BaseException:
            await engine.close()
            raise
        return engine

    def why_unavailable(self) -> str | None:
        """See `Engine.why_unavailable`; what was loaded stays."""
        return None

    async def run(self, make: Callable[[], Any], deadline: Deadline) -> Output:
        """See `Engine.run`; a pass that has begun goes on to its end."""
        return await self._in_thread(lambda: self._backend.run(make()))

    async def close(self) -> None:
        """See `Engine.close`."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self._backend.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
