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
import math
import time
from collections import deque
from dataclasses import dataclass

from cat_serve.backends.base import Engine
from cat_serve.contract import Output
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendUnavailable, Overloaded
from cat_serve.metrics import Metrics
from cat_serve.passes import Keep, Pass, Rows, Share, Ticket, everything

PACE_MEMORY = 0.8
FADING = 0.9


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


class Pace:
    """How quickly images leave the queue: an average in which old passes count less and less."""

    def __init__(self) -> None:
        self._images = 0.0
        self._seconds = 0.0
        self._shortest_s = math.inf

    def add(self, images: int, seconds: float, beside: int = 1) -> None:
        """Count a pass that took `seconds`, with `beside` passes running at the same time, itself among them."""
        self._images = PACE_MEMORY * self._images + images
        self._seconds = PACE_MEMORY * self._seconds + seconds / beside
        self._shortest_s = min(self._shortest_s, seconds)

    def whole_seconds_for(self, images: int) -> int:
        """Return how long so many images take, at least 1; also 1 while nothing was measured."""
        if not self._images:
            return 1
        return max(1, math.ceil(images * self._seconds / self._images))

    def too_slow_for(self, seconds: float) -> bool:
        """Say whether no pass was ever as short as that, so that even an idle engine could not make it.

        Every refusal makes what was measured count for less, so that one slow start cannot refuse for ever.
        """
        if not math.isfinite(self._shortest_s) or seconds >= self._shortest_s:
            return False
        self._shortest_s *= FADING
        return True


class Batcher:
    """The queue of one model, and the dispatcher that empties it; made inside a running event loop.

    Args:
        engine: the model's engine.
        slots: as many as passes may run at the same time, for all models together.
        limits: see `Limits`.
        metrics: where passes are counted.
    """

    def __init__(
        self,
        engine: Engine,
        slots: asyncio.Semaphore,
        limits: Limits,
        metrics: Metrics | None = None,
    ) -> None:
        self.max_batch = min(limits.max_batch, engine.artefact.manifest.max_batch)
        self.waiting = 0
        self._engine = engine
        self._slots = slots
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._pace = Pace()
        self._queue: deque[Ticket] = deque()
        self._running: dict[Pass, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._closing = False
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def passes_in_flight(self) -> int:
        return len(self._running)

    def whole_seconds_for(self, images: int) -> int:
        """Return how long so many images take at the pace of the latest passes, at least 1."""
        return self._pace.whole_seconds_for(images)

    async def submit(self, rows: Rows, deadline: Deadline = NEVER, keep: Keep = everything) -> Made:
        """Make all rows. Cancelled or too late, it takes back those that did not start.

        Args:
            keep: takes from the engine's answer to some of the rows what is wanted of it.

        Raises:
            Overloaded: they would not fit into the queue; nothing was done.
            DeadlineExceeded: they were not made in time, or could not be even if nobody else waited.
            BackendError: the engine failed on a pass that held some of them.
        """
        self._admit(len(rows), deadline)
        ticket = Ticket(rows, deadline, keep)
        self._queue.append(ticket)
        self.waiting += len(rows)
        self._news.set()
        try:
            output = await deadline.hold(ticket.done, lambda: ticket.stage)
        finally:
            self._drop(ticket)
            ticket.stages.leave()
        queue_s = time.perf_counter() - ticket.asked_s - ticket.busy_s
        return Made(output, 1e3 * queue_s, 1e3 * ticket.busy_s)

    async def close(self) -> None:
        """Refuse new requests, make what waits, and stop."""
        self._closing = True
        self._news.set()
        await self._dispatcher
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _admit(self, count: int, deadline: Deadline) -> None:
        if self._closing:
            raise BackendUnavailable("The server is shutting down.", retry_after_s=1)
        limit = self._limits.max_queued_images
        if self.waiting + count <= limit:
            if deadline.left_s <= 0 or self._pace.too_slow_for(deadline.left_s):
                raise deadline.exceeded("queue")
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
            self._metrics.passed(self._engine.artefact.manifest.model, len(engine_pass))
            for (
                share
            ) in shares:  # now, not when the task begins: a pass that ends between would miss them
                share.ticket.enter(engine_pass, entered_s)
            running = asyncio.create_task(self._run(engine_pass, entered_s))
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
        delay_s = 0.0 if self._engine.has_queue else self._limits.batch_delay_ms / 1e3
        while 0 < self.waiting < self.max_batch and not self._closing:
            left_s = self._queue[0].asked_s + delay_s - time.perf_counter()
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

    async def _run(self, engine_pass: Pass, entered_s: float) -> None:
        """Run one pass and hand its rows back."""
        outcomes = await engine_pass.run(self._engine)
        left_s = time.perf_counter()
        if any(isinstance(outcome, Output) for outcome in outcomes):
            self._pace.add(len(engine_pass), left_s - entered_s, len(self._running))
        for share, outcome in zip(engine_pass.shares, outcomes, strict=True):
            share.ticket.leave(engine_pass, share.start, outcome, left_s)
            if share.ticket.done.done():
                self._drop(share.ticket)

    def _end(self, engine_pass: Pass, _: asyncio.Task[None]) -> None:
        """Make room for the next pass; also called for one that was cancelled before its first step."""
        del self._running[engine_pass]
        for share in engine_pass.shares:
            share.ticket.passes.discard(engine_pass)
        self._slots.release()
