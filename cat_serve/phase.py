"""Where a service stands, from its start to its end, and what is said to whoever asks too early or too late."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from cat_serve.errors import BackendUnavailable

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class Phase(StrEnum):
    """Where the service stands; it takes requests when `ready` and, to the end, while `stopping`.

    `unavailable`: it started well, but the engine of a model is out of reach; it comes back by itself.
    """

    STARTING = "starting"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    STOPPING = "stopping"


class Life:
    """The life of one service: it starts, is ready or failed, and stops.

    Args:
        why_unavailable: why an engine is out of reach now, although the service started well; None if none is.

    Attributes:
        failure: what the start failed with.
        settled: set when the start has ended, well or not.
    """

    def __init__(self, why_unavailable: Callable[[], str | None]) -> None:
        self.failure: Exception | None = None
        self.settled = asyncio.Event()
        self._why_unavailable = why_unavailable
        self._phase = Phase.STARTING
        self._reason = "the models are being loaded"

    def standing(self) -> tuple[Phase, str]:
        """Return the phase, and why the service is not ready."""
        if self._phase is Phase.READY and (reason := self._why_unavailable()) is not None:
            return Phase.UNAVAILABLE, reason
        return self._phase, self._reason

    def ready(self) -> None:
        """Note that every model is loaded; a service that was told to stop meanwhile does not become ready."""
        if self._phase is Phase.STARTING:
            self._phase, self._reason = Phase.READY, ""

    def failed(self, error: Exception, reason: str) -> None:
        """Note that the start failed."""
        self._phase, self._reason, self.failure = Phase.FAILED, reason.rstrip("."), error
        logger.info("not ready: %s", self._reason)

    def stopping(self) -> None:
        """Note that the service is about to stop."""
        if self._phase in (Phase.STARTING, Phase.READY):
            self._phase, self._reason = Phase.STOPPING, "the server is shutting down"

    def require(self, *phases: Phase) -> None:
        """Go on in one of these phases alone, whatever the engines say.

        Raises:
            BackendUnavailable: the service is in another one.
        """
        if self._phase not in phases:
            raise not_ready(self._reason or self._phase)


def not_ready(reason: str) -> BackendUnavailable:
    """Return the error of who asks a service that is not ready."""
    return BackendUnavailable(
        f"The service is not ready: {reason}.",
        hint="GET /readyz says when it is",
        retry_after_s=RETRY_AFTER_S,
    )
