"""One Triton server that serves one model: whether it may be used, what it is doing, and a call to it.

A server is `suspect` until it has proved itself, `ready` from then on, `suspect` again when a call failed, and `down`
when it does not answer, serves something else, or does not make the golden images. One task for each server watches
over that: it asks a ready one now and then whether it is alive, proves a suspect one at once, and a down one again and
again, with growing pauses. A lost connection makes suspect too: who answers at the address next may be another server.
Calls in flight at a server that goes down are given up at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

from cat_serve.backends.base import TritonOptions
from cat_serve.backends.triton_connection import Connection, Proof
from cat_serve.backends.triton_wire import CallFailed
from cat_serve.contract import Batch, Output, Precision
from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendError, BackendTimeout, BackendUnavailable, CatServeError
from cat_serve.manifest import Artefact
from cat_serve.showable import one_colour

logger = logging.getLogger(__name__)

WATCH_S = 1.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0
LEAST_DOUBT_S = 0.25


class State(StrEnum):
    SUSPECT = "suspect"
    READY = "ready"
    DOWN = "down"


class Endpoint:
    """One server, for one model; made inside a running event loop.

    Args:
        changed: called after every change of `state`.

    Attributes:
        in_flight: images that it was asked for and has not answered.
        settled: set once its first proof succeeded or failed.
        proof: what it has shown last; None if it never did.
    """

    def __init__(
        self,
        url: str,
        artefact: Artefact,
        precision: Precision,
        options: TritonOptions,
        changed: Callable[[], None],
    ) -> None:
        self.url = url
        self.state = State.SUSPECT
        self.in_flight = 0
        self.proof: Proof | None = None
        self.settled = asyncio.Event()
        self._serves = f"{artefact.manifest.model}@{artefact.version} in {precision}"
        self._attempt_s, self._stall_s = options.attempt_ms / 1e3, options.stall_ms / 1e3
        self._changed = changed
        self._reason: tuple[str, str] | None = None
        self._recheck = True
        self._news = asyncio.Event()
        self._calls: set[asyncio.Task[Output]] = set()
        max_batch = min(options.max_batch, artefact.manifest.max_batch)
        self._connection = Connection(url, artefact, precision, max_batch)
        self._supervisor = asyncio.create_task(self._supervise())

    @property
    def usable(self) -> bool:
        """Whether calls may wait for it: it is ready, or will soon be known to be or not to be."""
        return self.state is not State.DOWN

    async def run(self, batch: Batch, deadline: Deadline) -> Output:
        """Make images there. Cancelled, it cancels the call, which the server then drops from its queue.

        Raises:
            CallFailed: it did not, and what that means.
        """
        if not self._connection.is_open():
            self._doubt("The connection was lost.")
            raise CallFailed(BackendError("A Triton server went away."), broken_off=True)
        call = asyncio.create_task(self._connection.infer(batch, deadline))
        call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # looked at
        self._calls.add(call)
        self.in_flight += len(batch)
        try:
            await self._watch(call, deadline)
            if call.cancelled():  # given up, when the server went down
                raise CallFailed(self._stalled(), broken_off=True)
            output = call.result()
        except CallFailed as failed:
            if failed.doubtful:
                self._doubt(failed.error.message)
            raise
        finally:
            call.cancel()
            self._calls.discard(call)
            self.in_flight -= len(batch)
        # Inputs were checked before: look whether the engine is damaged.
        if not output.ok.all() or one_colour(output.images).any():
            self._recheck = True
        return output

    async def close(self) -> None:
        """Stop watching, and close the connection."""
        ended = [self._supervisor, *self._calls]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        await self._connection.close()

    async def _watch(self, call: asyncio.Task[Output], deadline: Deadline) -> None:
        """Wait for a call, and ask in between whether the server is alive: a busy one says so, a stalled one does not.

        That is asked early enough for the call to be made elsewhere within its deadline.

        Raises:
            CallFailed: it is not alive, or the answer takes too long.
        """
        doubt_s = min(self._stall_s, max(deadline.left_s / 4, LEAST_DOUBT_S))
        end_s = time.perf_counter() + self._attempt_s
        while True:
            left_s = end_s - time.perf_counter()
            await asyncio.wait({call}, timeout=max(0, min(doubt_s, left_s)))
            silent = time.perf_counter() - self._connection.heard_s > doubt_s
            alive = call.done() or not silent or await self._is_alive_beside(call, doubt_s)
            if call.done():
                return
            if not alive:
                raise CallFailed(self._stalled(), broken_off=True)
            if time.perf_counter() >= end_s:
                raise CallFailed(BackendTimeout(
                    f"A Triton server did not answer within {1e3 * self._attempt_s:.0f} ms.",
                    hint="if that is too soon, set CAT_SERVE_TRITON_ATTEMPT_MS (--triton-attempt-ms)",
                ))  # fmt: skip

    def _stalled(self) -> BackendTimeout:
        return BackendTimeout("A Triton server stopped answering.")

    async def _is_alive_beside(self, call: asyncio.Task[Output], limit_s: float) -> bool:
        """Ask whether the server is alive, no longer than until the call ends."""
        asking = asyncio.create_task(self._connection.require_alive(limit_s))
        try:
            await asyncio.wait({call, asking}, return_when=asyncio.FIRST_COMPLETED)
            return not asking.done() or asking.exception() is None
        finally:
            asking.cancel()

    def _doubt(self, reason: str) -> None:
        """Use it no more until it has proved itself."""
        if self.state is State.READY:
            logger.warning("Triton %s: %s It must prove itself again.", self.url, reason)
            self._recheck = True
            self._move(State.SUSPECT)
            self._news.set()

    def _move(self, state: State) -> None:
        self.state = state
        self._changed()

    async def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            self._news.clear()
            try:
                await self._check()
            except Exception as error:
                self._give_up(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await self._news.wait()

    async def _check(self) -> None:
        """See that a ready server is alive; let any other prove itself.

        Raises:
            CatServeError: it is not, or cannot.
        """
        if not self._connection.is_open():
            self._doubt("The connection was lost.")
        await self._connection.require_alive(self._stall_s)
        if not self._recheck:
            return
        self._recheck = False  # what fails meanwhile sets it again
        try:
            async with asyncio.timeout(self._attempt_s):
                self.proof = await self._connection.prove()
        except TimeoutError as error:
            raise BackendTimeout("It takes too long to make the golden images.") from error
        if self._recheck:
            return
        if self.state is not State.READY:
            self._reason = None
            logger.info("Triton %s serves %s (%s)", self.url, self._serves, self.proof.determinism)
            self._move(State.READY)
        self.settled.set()

    def _give_up(self, error: Exception) -> None:
        """Take a server out of use, and give up the calls in flight there."""
        self._recheck = True
        known = isinstance(error, CatServeError)
        # what gRPC says of an address that nobody listens at differs from try to try
        reason = (type(error).__name__, "" if isinstance(error, BackendUnavailable) else str(error))
        if reason != self._reason:
            self._reason = reason
            logger.warning(
                "Triton %s is not used: %s", self.url, error, exc_info=None if known else error
            )
        if self.state is not State.DOWN:
            self._move(State.DOWN)
        for call in self._calls:
            call.cancel()
        self.settled.set()
