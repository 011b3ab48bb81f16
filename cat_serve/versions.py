"""Which version of each model is served, and those that are on their way out."""

from __future__ import annotations

import asyncio
import ctypes
import logging
from contextlib import suppress

from cat_serve.loaded import Loaded
from cat_serve.wanted import ServedModel

logger = logging.getLogger(__name__)

# Who resolved a model just before the switch asks for its images just after; nothing is cheaper than to wait.
LINGER_S = 1.0


class Versions:
    """Owns what is loaded, until it is closed; used by one event loop.

    Attributes:
        revision: grows with every switch.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._present: dict[str, Loaded] = {}
        self._leaving: list[Loaded] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def present(self, name: str) -> Loaded | None:
        """Return the version of a model that is served; None before it is loaded."""
        return self._present.get(name)

    def all_present(self) -> list[Loaded]:
        return list(self._present.values())

    def all_of(self, name: str) -> list[Loaded]:
        """Return what is loaded of a model, also what is on its way out."""
        every = [*self._present.values(), *self._leaving]
        return [loaded for loaded in every if loaded.model.name == name]

    def of(self, model: ServedModel) -> Loaded | None:
        """Return what makes the images of this very version; None if it is gone."""
        present = self._present.get(model.name)
        candidates = [present, *self._leaving] if present is not None else self._leaving
        for loaded in candidates:
            if (loaded.model.name, loaded.version) == (model.name, model.artefact.version):
                return loaded
        return None

    def switch(self, loaded: Loaded) -> None:
        """Serve this version from now on; what was admitted to the one before is made there, and then that is freed."""
        before = self._present.get(loaded.model.name)
        self._present[loaded.model.name] = loaded
        self.revision += 1
        if before is not None:
            self._leaving.append(before)
            task = asyncio.create_task(self._retire(before))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def until_retired(self) -> None:
        """Wait until all versions that were replaced are freed."""
        await asyncio.gather(*self._retiring)

    async def close(self) -> None:
        """Make what waits, then free everything."""
        self._closing.set()
        await self.until_retired()
        for loaded in self._present.values():
            await loaded.finish()
        while self._present:
            await self._present.popitem()[1].close()

    async def _retire(self, loaded: Loaded) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._closing.wait()
        await loaded.until_unused()
        self._leaving.remove(loaded)
        await loaded.close()
        await asyncio.to_thread(return_freed_memory)
        logger.info("closed %s", loaded.model.label)


def return_freed_memory() -> None:
    """Give the system back what the C library keeps of freed memory; glibc does, where threads come and go."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
