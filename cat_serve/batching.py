"""Coalesce the rows of concurrent requests into forward passes, and say no when too many wait.

A batcher never waits for company unless it is told to: a pass starts as soon as a slot is free, with whatever
has queued until then. Rows are taken one request after another, a row each, so that a large request shares
every pass with the small ones beside it. Only rows that a pass takes are ever made into tensors.

An engine with a queue of its own batches by itself, across all who ask it: there the rows of a request go as passes of
their own, many at once, and requests take turns pass by pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from dataclasses import dataclass

from cat_serve.admission import Door, whole_seconds
from cat_serve.backends.base import Engine
from cat_serve.contract import Output
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendUnavailable, Overloaded
from cat_serve.forecast import Forecast
from cat_serve.metrics import Metrics
from cat_serve.passes import Keep, Pass, Rows, Share, Ticket, everything
from cat_serve.slots import Slots


@dataclass(frozen=True)
class Limits:
    """How much is taken on.

    Attributes:
        max_images_per_request: a larger request is refused before any work.
        max_queued_images: images that may wait, of all requests for one model.
        max_batch: images in one forward pass; the model's own limit holds too.
        batch_delay_ms: how long an unfilled pass waits for more; not for an engine with a queue of its own.
        deadline_ms: how long a request that does not say it has; 0: as long as it takes.
        max_frames_per_request: the same as `max_images_per_request`, of animations.
    """

    max_images_per_request: int = 64
    max_queued_images: int = 256
    max_batch: int = 16
    batch_delay_ms: float = 0.0
    deadline_ms: float = 0.0
    max_frames_per_request: int = 240

    @property
    def most_frames(self) -> int:
        """Return how many frames an animation may have: no more than may wait."""
        return min(self.max_frames_per_request, self.max_queued_images)


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


class Batcher:
    """The queue of one model, and the dispatcher that empties it; made inside a running event loop.

    Args:
        engine: the model's engine.
        slots: the places for passes, of all models together.
        limits: see `Limits`.
        metrics: where passes are counted.
    """

    def __init__(
        self,
        engine: Engine,
        slots: Slots,
        limits: Limits,
        metrics: Metrics | None = None,
    ) -> None:
        self.max_batch = min(limits.max_batch, engine.artefact.manifest.max_batch)
        self.waiting = 0
        self._engine = engine
        self._slots = slots
        self._metrics = metrics or Metrics()
        self._name = engine.artefact.manifest.model
        delay_s = 0.0 if engine.has_queue else limits.batch_delay_ms / 1e3
        self._delay_s = delay_s
        self.forecast = Forecast(slots, self.max_batch, engine.has_queue, self._waits, delay_s)
        self._door = Door(self._name, limits.max_queued_images, self.forecast, self._metrics)
        self._queue: deque[Ticket] = deque()
        self._running: dict[Pass, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._closing = False
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def passes_in_flight(self) -> int:
        return len(self._running)

    def whole_seconds_for(self, images: int) -> int:
        """Return how long so many images take that are asked for now, at least 1."""
        return whole_seconds(self.forecast.request_s(images))

    async def submit(self, rows: Rows, deadline: Deadline = NEVER, keep: Keep = everything) -> Made:
        """Make all rows. Cancelled or too late, it takes back those that did not start.

        Args:
            keep: takes from the engine's answer to some of the rows what is wanted of it.

        Raises:
            Overloaded: they would not fit into the queue, or not be made in time because it is too long; nothing
                was done. Or the engine's own queue is full.
            DeadlineExceeded: they were not made in time, or could not be even if nobody else waited.
            BackendError: the engine failed on a pass that held some of them.
        """
        if self._closing:
            raise BackendUnavailable("The server is shutting down.", retry_after_s=1)
        predicted_s = self._door.admit(len(rows), self.waiting, deadline)
        ticket = Ticket(rows, deadline, keep)
        self._queue.append(ticket)
        self.waiting += len(rows)
        self._news.set()
        try:
            output = await deadline.hold(ticket.done, lambda: ticket.stage)
        except Overloaded as refused:
            raise self._door.again(refused) from refused
        finally:
            self._drop(ticket)
            ticket.stages.leave()
        whole_s = time.perf_counter() - ticket.asked_s
        if predicted_s:
            self._metrics.predicted(self._name, whole_s / predicted_s)
        return Made(output, 1e3 * (whole_s - ticket.busy_s), 1e3 * ticket.busy_s)

    async def close(self) -> None:
        """Refuse new requests, make what waits, and stop."""
        self._closing = True
        self._news.set()
        await self._dispatcher
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self.forecast.close()

    def _waits(self) -> list[int]:
        """Return how many images of each request wait, in the order of their turns."""
        return [ticket.waiting for ticket in self._queue]

    def _drop(self, ticket: Ticket) -> None:
        """Forget the rows that no pass has taken, and take those back that can be."""
        if ticket.waiting:
            self._queue.remove(ticket)
            self.waiting -= ticket.waiting
            ticket.taken = len(ticket.rows)
        if self._engine.has_queue:  # then its passes have no rows of others
            for engine_pass in ticket.passes:
                self._running[engine_pass].cancel()

    async def _dispatch(self) -> None:
        while await self._something_waits():
            await self._linger()
            await self._slots.acquire()
            if not (shares := self._take()):  # all were dropped meanwhile
                self._slots.release()
                continue
            entered_s = time.perf_counter()
            engine_pass = Pass(shares)
            self._metrics.passed(self._name, len(engine_pass))
            self.forecast.begin(engine_pass, len(engine_pass))
            # now, not when the task begins: a pass that ends between would miss them
            for share in shares:
                share.ticket.enter(engine_pass, entered_s)
            running = asyncio.create_task(self._run(engine_pass))
            self._running[engine_pass] = running
            running.add_done_callback(functools.partial(self._end, engine_pass))

    async def _something_waits(self) -> bool:
        """Wait for rows; False once there are none and the batcher is being closed."""
        while not self.waiting and not self._closing:
            self._news.clear()
            await self._news.wait()
        return self.waiting > 0

    async def _linger(self) -> None:
        """Give an unfilled pass the time that the setting grants it."""
        while 0 < self.waiting < self.max_batch and not self._closing:
            left_s = self._queue[0].asked_s + self._delay_s - time.perf_counter()
            if left_s <= 0:
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left_s)

    def _take(self) -> list[Share]:
        """Take the rows of the next pass: one of each request in turn until it is full, or all of one request."""
        rows_a_turn = self.max_batch if self._engine.has_queue else 1
        left = min(self.max_batch, self.waiting)
        starts: dict[Ticket, int] = {}
        while left:
            ticket = self._queue.popleft()
            starts.setdefault(ticket, ticket.taken)
            rows = min(rows_a_turn, ticket.waiting)
            ticket.taken += rows
            self.waiting -= rows
            if ticket.waiting:
                self._queue.append(ticket)
            left = 0 if self._engine.has_queue else left - rows
        return [Share(ticket, start, ticket.taken) for ticket, start in starts.items()]

    async def _run(self, engine_pass: Pass) -> None:
        """Run one pass and hand its rows back."""
        outcomes = await engine_pass.run(self._engine)
        left_s = time.perf_counter()
        made = any(isinstance(outcome, Output) for outcome in outcomes)
        self.forecast.end(engine_pass, made)
        for share, outcome in zip(engine_pass.shares, outcomes, strict=True):
            share.ticket.leave(engine_pass, share.start, outcome, left_s)
            if share.ticket.done.done():
                self._drop(share.ticket)

    def _end(self, engine_pass: Pass, _: asyncio.Task[None]) -> None:
        """Make room for the next pass; also called for one that was cancelled before its first step."""
        del self._running[engine_pass]
        self.forecast.end(engine_pass, made=False)  # if it was cancelled
        for share in engine_pass.shares:
            share.ticket.passes.discard(engine_pass)
        self._slots.release()
