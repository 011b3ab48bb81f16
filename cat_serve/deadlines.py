"""How long somebody waits for an answer, counted from the arrival of the request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from cat_serve.errors import DeadlineExceeded, NeverInTime

Stage = Literal["queue", "generate", "encode"]

T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """A moment after which nobody waits any more.

    Attributes:
        at_s: on the clock of `time.perf_counter`; infinity if there is none.
        total_ms: how long the request had, for its error.
    """

    at_s: float
    total_ms: float

    @classmethod
    def after(cls, total_ms: float, arrived_s: float | None = None) -> Deadline:
        """Return the deadline of a request that arrived now, or at `arrived_s`."""
        start_s = time.perf_counter() if arrived_s is None else arrived_s
        return cls(start_s + total_ms / 1e3, total_ms)

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once it has passed, infinity if there is none."""
        return self.at_s - time.perf_counter()

    @property
    def exists(self) -> bool:
        return math.isfinite(self.at_s)

    def exceeded(self, stage: Stage) -> DeadlineExceeded:
        """Return the error of a request whose time ended in `stage`."""
        return DeadlineExceeded(
            f"The deadline of {self.total_ms:.0f} ms cannot be kept: it ends in the stage {stage}.",
            hint="send a larger X-Deadline-Ms, ask for fewer images, or try again when the server is less busy",
            stage=stage,
            deadline_ms=self.total_ms,
        )

    def hopeless(self, idle_s: float) -> NeverInTime:
        """Return the error of a request for which even an idle engine would need `idle_s`, which is too long."""
        return NeverInTime(
            f"The deadline of {self.total_ms:.0f} ms cannot be kept: it ends in the stage queue, for even an "
            f"idle server would take {1e3 * idle_s:.0f} ms.",
            hint="send a larger X-Deadline-Ms, or ask for fewer images",
            stage="queue",
            deadline_ms=self.total_ms,
            predicted_ms=round(1e3 * idle_s, 1),
        )

    async def hold(self, work: Awaitable[T], stage: Callable[[], Stage]) -> T:
        """Wait for `work`, and cancel it when the time is over.

        Args:
            stage: says where the work is at that moment.

        Raises:
            DeadlineExceeded: the time was over first.
        """
        try:
            async with asyncio.timeout(self.left_s if self.exists else None) as limit:
                return await work
        except TimeoutError as error:
            if limit.expired():
                raise self.exceeded(stage()) from error
            raise


NEVER = Deadline(math.inf, math.inf)
