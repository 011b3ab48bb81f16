"""The places for forward passes, of all models together, and the time that each pass in them gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol


class Queue(Protocol):
    """One of the queues whose passes want a place; works are in seconds of an engine that a pass has to itself."""

    def running(self) -> Sequence[float]:
        """Return the work that is left of each pass under way."""

    def upcoming(self) -> Sequence[float]:
        """Return the work of the passes that will begin, in their order."""


class Slots:
    """So many passes may be under way; who waits for a place gets it in turn.

    Attributes:
        places: how many there are.
        taken: how many passes are under way.
        queues: whose passes they are; each enters itself and takes itself out.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self.queues: list[Queue] = []
        self._free = asyncio.Semaphore(places)
        self._shared_s = 0.0
        self._counted_s = time.perf_counter()

    @property
    def shared_s(self) -> float:
        """A clock that advances by a second while one pass has the machine for a second, or two have it for two.

        What it shows less at a pass's begin than at its end is what the pass would have taken alone, if passes share
        the machine evenly.
        """
        now_s = time.perf_counter()
        self._shared_s += (now_s - self._counted_s) / max(1, self.taken)
        self._counted_s = now_s
        return self._shared_s

    async def acquire(self) -> None:
        """Wait for a place, and take it."""
        await self._free.acquire()
        self._count(1)

    def release(self) -> None:
        """Give a place back."""
        self._count(-1)
        self._free.release()

    def _count(self, change: int) -> None:
        _ = self.shared_s  # up to now, with as many as there were
        self.taken += change
