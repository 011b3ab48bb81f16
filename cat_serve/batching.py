"""Coalesce the rows of concurrent requests into forward passes, and say no when too many wait.

A batcher never waits for company unless it is told to: a pass starts as soon as a slot is free, with whatever
has queued until then. Rows are taken one request after another, a row each, so that a large request shares
every pass with the small ones beside it. Only rows that a pass takes are ever made into tensors.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from cat_serve.backends.base import Backend
from cat_serve.contract import Output
from cat_serve.errors import BackendUnavailable, Overloaded
from cat_serve.passes import Rows, Share, Ticket, forward

PACE_MEMORY = 0.8


@dataclass(frozen=True)
class Limits:
    """How much is taken on.

    Attributes:
        max_images_per_request: a larger request is refused before any work.
        max_queued_images: images that may wait, of all requests for one model.
        max_batch: images in one forward pass; the model's own limit holds too.
        batch_delay_ms: how long an unfilled pass waits for more.
    """

    max_images_per_request: int = 64
    max_queued_images: int = 256
    max_batch: int = 16
    batch_delay_ms: float = 0.0


@dataclass(frozen=True)
class Made:
    """What came of a request's rows, in their order, and where the time went.

    Attributes:
        output: `images` uint8 [n, H, W, 3] and `ok` bool [n].
        queue_ms: time in which none of the rows was in the engine.
        generate_ms: time in which at least one was.
    """

    output: Output
    queue_ms: float
    generate_ms: float


class Pace:
    """How quickly images leave the queue: an average in which old passes count less and less."""

    def __init__(self) -> None:
        self._images = 0.0
        self._seconds = 0.0

    def add(self, images: int, seconds: float) -> None:
        """Count a pass; `seconds` is its share of the time if others ran beside it."""
        self._images = PACE_MEMORY * self._images + images
        self._seconds = PACE_MEMORY * self._seconds + seconds

    def whole_seconds_for(self, images: int) -> int:
        """Return how long so many images take, at least 1; also 1 while nothing was measured."""
        if not self._images:
            return 1
        return max(1, math.ceil(images * self._seconds / self._images))


class Batcher:
    """The queue of one model, and the dispatcher that empties it; made inside a running event loop.

    Args:
        backend: the model's engine.
        threads: where passes run.
        slots: as many as passes may run at the same time, for all models together.
        limits: see `Limits`.
    """

    def __init__(
        self, backend: Backend, threads: Executor, slots: asyncio.Semaphore, limits: Limits
    ) -> None:
        self.max_batch = min(limits.max_batch, backend.artefact.manifest.max_batch)
        self.waiting = 0
        self._backend = backend
        self._threads = threads
        self._slots = slots
        self._limits = limits
        self._pace = Pace()
        self._queue: deque[Ticket] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._closing = False
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def submit(self, rows: Rows) -> Made:
        """Make all rows. Cancelled, it takes back those that did not start.

        Raises:
            Overloaded: they would not fit into the queue; nothing was done.
            BackendError: the engine failed on a pass that held some of them.
        """
        self._admit(len(rows))
        ticket = Ticket(rows)
        self._queue.append(ticket)
        self.waiting += len(rows)
        self._news.set()
        try:
            output = await ticket.done
        finally:
            self._drop(ticket)
        queue_s = time.perf_counter() - ticket.asked_s - ticket.busy_s
        return Made(output, 1e3 * queue_s, 1e3 * ticket.busy_s)

    async def close(self) -> None:
        """Refuse new requests, make what waits, and stop."""
        self._closing = True
        self._news.set()
        await self._dispatcher
        await asyncio.gather(*self._running)

    def _admit(self, count: int) -> None:
        if self._closing:
            raise BackendUnavailable("The server is shutting down.", retry_after_s=1)
        limit = self._limits.max_queued_images
        if self.waiting + count <= limit:
            return
        retry_after_s = self._pace.whole_seconds_for(self.waiting)
        raise Overloaded(
            f"{self.waiting} images wait already and {count} more would be too many.",
            hint=f"try again in {retry_after_s} s",
            got=count,
            waiting=self.waiting,
            limit=limit,
            retry_after_s=retry_after_s,
        )

    def _drop(self, ticket: Ticket) -> None:
        """Forget the rows that no pass has taken."""
        if ticket.waiting:
            self._queue.remove(ticket)
            self.waiting -= ticket.waiting
            ticket.taken = len(ticket.rows)

    async def _dispatch(self) -> None:
        while await self._something_waits():
            await self._linger()
            await self._slots.acquire()
            if not (shares := self._take()):  # all were dropped meanwhile
                self._slots.release()
                continue
            entered_s = time.perf_counter()
            for (
                share
            ) in shares:  # now, not when the task begins: a pass that ends between would miss them
                share.ticket.enter(entered_s)
            running = asyncio.create_task(self._run(shares, entered_s))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _something_waits(self) -> bool:
        """Wait for rows; False once there are none and the batcher is being closed."""
        while not self.waiting and not self._closing:
            self._news.clear()
            await self._news.wait()
        return self.waiting > 0

    async def _linger(self) -> None:
        """Give an unfilled pass the time that the setting grants it."""
        delay_s = self._limits.batch_delay_ms / 1e3
        while 0 < self.waiting < self.max_batch and not self._closing:
            left_s = self._queue[0].asked_s + delay_s - time.perf_counter()
            if left_s <= 0:
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left_s)

    def _take(self) -> list[Share]:
        """Take the rows of the next pass: one of each request in turn, until it is full."""
        starts: dict[Ticket, int] = {}
        for _ in range(min(self.max_batch, self.waiting)):
            ticket = self._queue.popleft()
            starts.setdefault(ticket, ticket.taken)
            ticket.taken += 1
            self.waiting -= 1
            if ticket.waiting:
                self._queue.append(ticket)
        return [Share(ticket, start, ticket.taken) for ticket, start in starts.items()]

    async def _run(self, shares: Sequence[Share], entered_s: float) -> None:
        """Run one pass and hand its rows back."""
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(self._threads, forward, self._backend, shares)
        finally:
            self._slots.release()
        left_s = time.perf_counter()
        self._pace.add(sum(map(len, shares)), (left_s - entered_s) / len(self._running))
        for share, outcome in zip(shares, outcomes, strict=True):
            share.ticket.leave(share.start, outcome, left_s)
            if share.ticket.done.done():
                self._drop(share.ticket)
