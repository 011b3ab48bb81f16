"""One Triton server that serves one model: whether it may be used, what it is doing, and a call to it.

A server is `suspect` until it has proved itself, `ready` from then on, `suspect` again when a call failed, and `down`
when it does not answer, serves something else, or does not make the golden images. One task for each server watches
over that: it asks a ready one now and then whether it is alive, proves a suspect one at once, and a down one again and
again, with growing pauses. A lost connection makes suspect too: who answers at the address next may be another server.
Calls in flight at a server that goes down are given up at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import grpc
from grpc.aio import AioRpcError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cat_serve.backends.base import TritonOptions
from cat_serve.backends.triton_wire import (
    CallFailed,
    failure,
    infer_request,
    read_output,
    require_fits,
    unreachable,
)
from cat_serve.contract import Batch, Output, Precision
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendError, BackendTimeout, BackendUnavailable, CatServeError
from cat_serve.golden import golden_pair, require_golden
from cat_serve.manifest import Artefact, Determinism
from cat_serve.passes import concatenated, sliced

logger = logging.getLogger(__name__)

WATCH_S = 1.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0
LEAST_DOUBT_S = 0.25
CHANNEL = [
    (
        "grpc.max_send_message_length",
        -1,
    ),  # 64 images of 512 px are 50 MB, and gRPC's own limit is 4
    ("grpc.max_receive_message_length", -1),
    # when to try again is decided here; gRPC's own pauses grow to two minutes
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # the state of a channel is that of its own connection
]


class State(StrEnum):
    SUSPECT = "suspect"
    READY = "ready"
    DOWN = "down"


class Endpoint:
    """A connection to one server, for one model; made inside a running event loop.

    Args:
        changed: called after every change of `state`.

    Attributes:
        in_flight: images that it was asked for and has not answered.
        settled: set once its first proof succeeded or failed.
        golden: hash of the golden images as it made them last; None if it never did.
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
        self.determinism: Determinism = "latent"
        self.golden: str | None = None
        self.settled = asyncio.Event()
        self._artefact = artefact
        self._precision = precision
        self._max_batch = min(options.max_batch, artefact.manifest.max_batch)
        self._attempt_s, self._stall_s = options.attempt_ms / 1e3, options.stall_ms / 1e3
        self._changed = changed
        self._reason = ""
        self._heard_s = -math.inf
        self._recheck = True
        self._news = asyncio.Event()
        self._calls: set[asyncio.Task[Output]] = set()
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
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
        if not self._is_connected():
            self._doubt("The connection was lost.")
            raise CallFailed(BackendError("A Triton server went away."), broken_off=True)
        call = asyncio.create_task(self._infer(batch, deadline))
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
        if not output.ok.all():  # inputs were checked before: look whether the engine is damaged
            self._recheck = True
            self._news.set()
        return output

    async def close(self) -> None:
        """Stop watching, and close the connection."""
        ended = [self._supervisor, *self._calls]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        await self._channel.close()

    async def _infer(self, batch: Batch, deadline: Deadline) -> Output:
        request = infer_request(batch, self._artefact, deadline)
        limit_s = max(0.0, deadline.left_s) if deadline.exists else None
        try:
            response = await self._stub.ModelInfer(request, timeout=limit_s)
            self._heard_s = time.perf_counter()
            return read_output(response, batch, self._artefact)
        except AioRpcError as error:
            raise failure(error, deadline) from error
        except BackendError as error:
            raise CallFailed(error) from error

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
            silent = time.perf_counter() - self._heard_s > doubt_s
            alive = call.done() or not silent or await self._is_alive(doubt_s)
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

    async def _is_alive(self, limit_s: float) -> bool:
        try:
            answer = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=limit_s)
        except AioRpcError:
            return False
        self._heard_s = time.perf_counter()
        return bool(answer.live)

    def _is_connected(self) -> bool:
        """Say whether the connection is still the one over which the server proved itself.

        gRPC does not connect again before the next call, so a lost connection cannot be missed here.
        """
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

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
        if not self._is_connected():
            self._doubt("The connection was lost.")
        if not await self._is_alive(self._stall_s):
            raise BackendUnavailable("It does not say that it is alive.")
        if not self._recheck:
            return
        self._recheck = False  # what fails meanwhile sets it again
        await self._prove()
        if self._recheck:
            return
        if self.state is not State.READY:
            self._reason = ""
            logger.info(
                "Triton %s serves %s@%s in %s (%s)", self.url, self._artefact.manifest.model,
                self._artefact.version, self._precision, self.determinism,
            )  # fmt: skip
            self._move(State.READY)
        self.settled.set()

    def _give_up(self, error: Exception) -> None:
        """Take a server out of use, and give up the calls in flight there."""
        self._recheck = True
        if not isinstance(error, CatServeError):
            logger.error("Triton %s: unexpected", self.url, exc_info=error)
        if str(error) != self._reason:
            self._reason = str(error)
            logger.warning("Triton %s is not used: %s", self.url, self._reason)
        if self.state is not State.DOWN:
            self._move(State.DOWN)
        for call in self._calls:
            call.cancel()
        self.settled.set()

    async def _prove(self) -> None:
        """Compare its configuration with the artefact, and let it make the golden images.

        Raises:
            BackendUnavailable: it does not answer.
            ArtefactError: it serves something else.
            BackendError: its answers break the contract, or are not the golden images.
        """
        asked = service_pb2.ModelConfigRequest(
            name=self._artefact.manifest.model, version=self._artefact.folder.name
        )
        expected, batch = await asyncio.to_thread(golden_pair, self._artefact)
        try:
            async with asyncio.timeout(self._attempt_s):
                response = await self._stub.ModelConfig(asked, timeout=self._stall_s)
                determinism = require_fits(
                    response.config, self._artefact, self._precision, self._max_batch
                )
                output = await self._run_all(batch)
        except AioRpcError as error:
            raise unreachable(error) from error
        except CallFailed as failed:
            raise failed.error from failed
        except TimeoutError as error:
            raise BackendTimeout("It takes too long to make the golden images.") from error
        require_golden(output, expected, self._artefact, self._precision, "Triton")
        self.determinism = determinism
        self.golden = hashlib.sha256(output.images.tobytes()).hexdigest()

    async def _run_all(self, batch: Batch) -> Output:
        """Make images in calls that are as large as those of requests may be."""
        starts = range(0, len(batch), self._max_batch)
        return concatenated([
            await self._infer(sliced(batch, slice(start, start + self._max_batch)), NEVER)
            for start in starts
        ])  # fmt: skip
