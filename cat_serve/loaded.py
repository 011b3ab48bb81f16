"""One version of a model while it is served: its engine, the queues before it, and who is still waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from cat_serve.backends.base import Engine
from cat_serve.batching import Batcher
from cat_serve.errors import ArtefactError
from cat_serve.manifest import MANIFEST_NAME, Artefact, Determinism, public_version
from cat_serve.pace import Line
from cat_serve.studio import Studio
from cat_serve.wanted import ServedModel

EngineFactory = Callable[[Artefact], Awaitable[Engine]]


class Loaded:
    """A model whose engine was proved; made inside a running event loop.

    Args:
        queue_for: makes the queue in front of an engine.
    """

    def __init__(
        self, model: ServedModel, engine: Engine, queue_for: Callable[[Engine], Batcher]
    ) -> None:
        self.model = model
        self.engine = engine
        self.batcher = queue_for(engine)
        self.studio = Studio(model.name, self._open_studio, queue_for)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def version(self) -> str:
        return self.model.artefact.version

    @property
    def queued_images(self) -> int:
        return self.batcher.waiting + self.studio.waiting

    @property
    def passes_in_flight(self) -> int:
        return self.batcher.passes_in_flight + self.studio.passes_in_flight

    def determinism(self, studio: bool) -> Determinism:
        """Return what is promised of its bytes, or of its studio's."""
        return (self.engine.studio_determinism or "latent") if studio else self.engine.determinism

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open for as long as the block takes."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def until_unused(self) -> None:
        """Wait until nobody waits for its images any more."""
        await self._unused.wait()

    def pace(self) -> Iterator[tuple[str, Line, float]]:
        """Yield, for each of its graphs that has run, the graph, its pace, and when one more image would be made."""
        queues = {"plain": self.batcher, "studio": self.studio.opened}
        for graph, batcher in queues.items():
            if batcher is not None and (line := batcher.forecast.line) is not None:
                yield graph, line, batcher.forecast.request_s(1) or 0.0

    async def finish(self) -> None:
        """Make what waits, and take no more."""
        await self.batcher.close()
        await self.studio.close()

    async def close(self) -> None:
        """Make what waits, then free the engines."""
        await self.finish()
        await self.engine.close()

    async def _open_studio(self) -> Engine:
        """Open the studio of this version; its folder may meanwhile hold another.

        Raises:
            ArtefactError: it does.
        """
        artefact = self.model.artefact
        manifest = artefact.folder / MANIFEST_NAME
        if not manifest.is_file() or public_version(manifest) != artefact.version:
            raise ArtefactError(
                f"The files of {self.model.label} were replaced since it was loaded.",
                hint="reload the models, or restart the server",
            )
        return await self.engine.open_studio()
