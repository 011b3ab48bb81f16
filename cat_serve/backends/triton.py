"""Ask Triton servers, one or several, for images: choose one, and if it fails, ask another."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence

from cat_serve.backends.base import Engine, EngineOptions, no_studio
from cat_serve.backends.triton_endpoint import Endpoint, State
from cat_serve.backends.triton_wire import RETRY_AFTER_S, CallFailed
from cat_serve.contract import Batch, Output
from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendTimeout, BackendUnavailable, CatServeError
from cat_serve.manifest import Artefact, Determinism

logger = logging.getLogger(__name__)

ATTEMPTS = 2

Attempts = list[tuple[Endpoint, CallFailed]]


class TritonEngine:
    """See `Engine`: one model on several servers. Images are pure functions, so any of them may be asked."""

    name = "triton"
    has_queue = True

    def __init__(self, artefact: Artefact, options: EngineOptions) -> None:
        self.artefact = artefact
        self.precision = options.precision
        self._least_loaded = options.triton.balance == "least-loaded"
        self._news = asyncio.Event()
        self._turns = itertools.count(1)
        self.endpoints = [
            Endpoint(url, artefact, options.precision, options.triton, self._wake)
            for url in options.triton.urls
        ]
        self._last_turn = dict.fromkeys(self.endpoints, 0)

    @property
    def determinism(self) -> Determinism:
        """`bytes` if every server that was proved promises it, and all made the same golden images."""
        proofs = {endpoint.proof for endpoint in self.endpoints if endpoint.proof is not None}
        return "bytes" if [proof.determinism for proof in proofs] == ["bytes"] else "latent"

    @property
    def studio_determinism(self) -> Determinism | None:
        return None

    async def open_studio(self) -> Engine:
        """See `Engine.open_studio`; the servers hold the plain graphs only."""
        reason = "the Triton servers have no studio graph"
        raise no_studio(self.artefact.manifest.model, reason)

    def why_unavailable(self) -> str | None:
        """See `Engine.why_unavailable`; a server that is being proved counts, because calls wait for it."""
        if any(endpoint.usable for endpoint in self.endpoints):
            return None
        servers = f"{len(self.endpoints)} Triton server" + "s" * (len(self.endpoints) > 1)
        return f"none of {servers} can serve {self.artefact.manifest.model}"

    def servers_ready(self) -> list[bool]:
        """Return for each server, in the order of the settings, whether it gets calls."""
        return [endpoint.state is State.READY for endpoint in self.endpoints]

    async def settle(self) -> None:
        """Wait until every server has proved itself, or failed to."""
        await asyncio.gather(*(endpoint.settled.wait() for endpoint in self.endpoints))

    async def run(self, make: Callable[[], Batch], deadline: Deadline) -> Output:
        """See `Engine.run`; a call that fails at one server is made once more, at another if there is one.

        Raises:
            BackendUnavailable: no server can be asked.
            BackendTimeout: those that were asked did not answer.
            BackendError: they answered something else than the contract says, or went away.
        """
        batch = await asyncio.to_thread(make)
        attempts: Attempts = []
        while len(attempts) < ATTEMPTS and (endpoint := await self._choose(attempts)):
            try:
                return await endpoint.run(batch, deadline)
            except CallFailed as failed:
                attempts.append((endpoint, failed))
                if not failed.elsewhere:
                    break
                logger.debug("Triton %s failed a call: %s", endpoint.url, failed.error.message)
        await self._until_known(attempts)
        raise self._told(attempts)

    async def close(self) -> None:
        """See `Engine.close`."""
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    async def _choose(self, attempts: Attempts) -> Endpoint | None:
        """Return who gets the next attempt; None if there is nobody.

        One that failed is asked again only after it has proved itself anew, and not at all if it was just too busy.
        """
        busy = [endpoint for endpoint, failed in attempts if not failed.doubtful]
        able = [endpoint for endpoint in self.endpoints if endpoint not in busy]
        while any(endpoint.usable for endpoint in able):
            if ready := [endpoint for endpoint in able if endpoint.state is State.READY]:
                return self._pick(ready)
            await self._news.wait()
        return None

    def _pick(self, ready: Sequence[Endpoint]) -> Endpoint:
        """Return the server with the fewest images in flight, or the one whose turn was longest ago."""
        chosen = min(
            ready, key=lambda e: (e.in_flight if self._least_loaded else 0, self._last_turn[e])
        )
        self._last_turn[chosen] = next(self._turns)
        return chosen

    async def _until_known(self, attempts: Attempts) -> None:
        """Wait until it is known whether a request was broken off because no server is left: 503, not 502.

        A server that was killed is known to be gone at once, one that breaks off and lives proves itself anew. A stalled one
        has been waited for before.
        """
        if not attempts or not attempts[-1][1].broken_off:
            return
        if isinstance(attempts[-1][1].error, BackendTimeout):
            return
        while self.why_unavailable() is None and not any(self.servers_ready()):
            await self._news.wait()

    def _told(self, attempts: Attempts) -> CatServeError:
        """Return the error of a request: of its last attempt, unless there is no server left at all."""
        reason = self.why_unavailable()
        if attempts and not (attempts[-1][1].broken_off and reason):
            return attempts[-1][1].error
        return BackendUnavailable(
            f"The request cannot be computed: {reason or 'no Triton server is ready'}.",
            hint="GET /readyz says when it can",
            retry_after_s=RETRY_AFTER_S,
        )

    def _wake(self) -> None:
        """Wake up the calls that wait for a server."""
        self._news.set()
        self._news = asyncio.Event()


async def open_engine(artefact: Artefact, options: EngineOptions) -> TritonEngine:
    """Open `artefact` as the registry does; servers that are not there yet may come later."""
    engine = TritonEngine(artefact, options)
    await engine.settle()
    return engine
