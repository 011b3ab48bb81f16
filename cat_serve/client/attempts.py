"""When a call is made again, and when it is given up; without input or output, so both clients share it."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import httpx

from cat_serve.client.problems import TOO_MANY, UNAVAILABLE, error_of
from cat_serve.errors import BackendUnavailable, CatServeError, DeadlineExceeded, InvalidInput

CONNECT_S = 5.0
MAX_DEADLINE_MS = 3_600_000  # the largest that the server takes
# The server is told a little less than is left, so that its answer, which names the stage, comes before the end.
SHARE_FOR_THE_SERVER = 0.95

AGAIN = frozenset({TOO_MANY, UNAVAILABLE})
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class Retries:
    """How often a call is made, and how long to wait in between.

    The pause before attempt k + 1 is drawn from 0 .. min(longest_s, first_s * 2^(k - 1)), "full jitter": clients that
    failed together do not come back together. `Retry-After` is waited for first.

    Attributes:
        attempts: at most so many, the first included; 1 turns retries off.
        first_s: the longest pause after the first attempt.
        longest_s: no pause is drawn longer than that.
    """

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.first_s <= self.longest_s:
            raise InvalidInput(
                f"{self} makes no sense.", hint="attempts >= 1 and 0 <= first_s <= longest_s"
            )

    def pause_s(self, attempt: int, retry_after_s: float | None = None) -> float:
        """Draw the pause after attempt `attempt`, counted from 1."""
        doublings = min(attempt - 1, 64)
        longest_s = min(self.longest_s, self.first_s * 2**doublings)
        return (retry_after_s or 0.0) + random.uniform(0, longest_s)


class Attempts:
    """The attempts of one call.

    Args:
        retries: see `Retries`.
        deadline_s: seconds that the whole call has, pauses included; None: as long as it takes.
    """

    def __init__(self, retries: Retries, deadline_s: float | None) -> None:
        if deadline_s is not None and not deadline_s > 0:
            raise InvalidInput(f"deadline_s is {deadline_s}.", hint="seconds, more than 0, or None")
        self.made = 0
        self._retries = retries
        self._ends_s = math.inf if deadline_s is None else time.monotonic() + deadline_s
        self._last: CatServeError | None = None

    @property
    def left_s(self) -> float:
        return self._ends_s - time.monotonic()

    def begin(self) -> tuple[dict[str, str], httpx.Timeout]:
        """Count an attempt; return the headers that it adds, and its time-outs.

        Raises:
            DeadlineExceeded: the time is over.
        """
        left_s = self.left_s
        if left_s <= 0:
            raise self.too_late()
        self.made += 1
        if math.isinf(left_s):
            return {}, httpx.Timeout(None, connect=CONNECT_S)
        told_ms = min(MAX_DEADLINE_MS, max(1, int(1e3 * left_s * SHARE_FOR_THE_SERVER)))
        return {"X-Deadline-Ms": str(told_ms)}, httpx.Timeout(
            left_s, connect=min(CONNECT_S, left_s)
        )

    def after(self, answer: httpx.Response) -> float | None:
        """Return the pause before the next attempt; None if the answer is a success.

        Raises:
            CatServeError: the answer is an error that the same request would meet again, or there is no time or no
                attempt left.
        """
        if answer.is_success:
            return None
        error = error_of(answer)
        if answer.status_code not in AGAIN:
            raise error
        return self._pause_s(error, error.details.get("retry_after_s"))

    def after_failure(self, failure: httpx.RequestError) -> float:
        """Return the pause before the next attempt, where there was no answer.

        Raises:
            DeadlineExceeded: there is no time left.
            BackendUnavailable: there is no attempt left, or another one could not help.
        """
        if isinstance(failure, httpx.TimeoutException) and not isinstance(failure, BROKEN):
            raise self.too_late() from failure  # these are as long as the time that was left
        error = BackendUnavailable(
            f"The server did not answer: {failure or type(failure).__name__}.",
            hint="is it running at this address? cat-serve serve says where it listens",
        )
        error.__cause__ = failure
        if not isinstance(failure, BROKEN):
            raise error
        return self._pause_s(error, None)

    def too_late(self) -> DeadlineExceeded:
        """Return the error that says that the time is over."""
        error = DeadlineExceeded(
            f"There was no answer in time, after {self.made} attempts.",
            hint="give deadline_s more seconds, or None",
            stage="client",
            attempts=self.made,
        )
        error.__cause__ = self._last
        return error

    def _pause_s(self, error: CatServeError, retry_after_s: float | None) -> float:
        error.details = {**error.details, "attempts": self.made}
        self._last = error
        pause_s = self._retries.pause_s(self.made, retry_after_s)
        if self.made >= self._retries.attempts or pause_s >= self.left_s:
            raise error  # now, and not when there is no time to do anything else
        return pause_s
