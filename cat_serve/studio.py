"""The second engine of a model, which makes mixtures and stages: opened when somebody needs it first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cat_serve.backends.base import Engine
from cat_serve.batching import Batcher
from cat_serve.errors import BackendUnavailable, CatServeError, InvalidInput

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5


class Studio:
    """The studio of one model, with a queue of its own; a server that nobody asks for it never loads it.

    Args:
        model: the model's name.
        open_engine: opens the engine and proves it by the golden images.
        queue_for: makes the queue in front of it.
    """

    def __init__(
        self,
        model: str,
        open_engine: Callable[[], Awaitable[Engine]],
        queue_for: Callable[[Engine], Batcher],
    ) -> None:
        self._model = model
        self._open_engine = open_engine
        self._queue_for = queue_for
        self._opening: asyncio.Task[Batcher | CatServeError] | None = None
        self._engine: Engine | None = None
        self._batcher: Batcher | None = None
        self._again_s = 0.0

    @property
    def opened(self) -> Batcher | None:
        """The queue, if somebody has needed it."""
        return self._batcher

    @property
    def waiting(self) -> int:
        return 0 if self._batcher is None else self._batcher.waiting

    @property
    def passes_in_flight(self) -> int:
        return 0 if self._batcher is None else self._batcher.passes_in_flight

    async def batcher(self) -> Batcher:
        """Return the queue; the first who asks has the engine opened, all others wait for the same.

        Raises:
            InvalidInput: `no_studio`, the model has none on this engine.
            BackendUnavailable: it could not be opened; it is tried again after some seconds.
        """
        if self._batcher is not None:
            return self._batcher
        if self._opening is None or (self._opening.done() and time.monotonic() >= self._again_s):
            self._opening = asyncio.create_task(self._open())
        opened = await asyncio.shield(self._opening)  # whoever leaves does not stop it for others
        if isinstance(opened, CatServeError):
            raise opened
        return opened

    async def close(self) -> None:
        """Make what waits, then free the engine, if there is one."""
        if self._opening is not None:
            await self._opening
        if self._batcher is not None and self._engine is not None:
            await self._batcher.close()
            await self._engine.close()

    async def _open(self) -> Batcher | CatServeError:
        started_s = time.perf_counter()
        try:
            self._engine = await self._open_engine()
        except InvalidInput as error:
            return error
        except Exception as error:
            logger.exception("the studio of %s cannot be opened", self._model)
            self._again_s = time.monotonic() + RETRY_AFTER_S
            unavailable = BackendUnavailable(
                f"Mixtures and stages of {self._model} cannot be made: its studio does not open.",
                hint="the server's log says why; images of one class are not affected",
                retry_after_s=RETRY_AFTER_S,
            )
            unavailable.__cause__ = error
            return unavailable
        self._batcher = self._queue_for(self._engine)
        spent_ms = 1e3 * (time.perf_counter() - started_s)
        logger.info("opened the studio of %s in %.0f ms", self._model, spent_ms)
        return self._batcher
