"""Who may join the queue of a model, and what everybody else is told: when to come again, or that there is no use."""

from __future__ import annotations

import math

from cat_serve.deadlines import Deadline
from cat_serve.errors import Overloaded
from cat_serve.forecast import Forecast
from cat_serve.metrics import Metrics


class Door:
    """Refuses at once what cannot be kept; what is refused was never started.

    Args:
        model: its name, for metrics.
        limit: images that may wait.
    """

    def __init__(self, model: str, limit: int, forecast: Forecast, metrics: Metrics) -> None:
        self._model = model
        self._limit = limit
        self._forecast = forecast
        self._metrics = metrics

    def admit(self, images: int, waiting: int, deadline: Deadline) -> float | None:
        """Return in how many seconds the request will be made; None if nothing is known of that, or it has no deadline.

        Args:
            waiting: images that wait already.

        Raises:
            DeadlineExceeded: not even an idle engine could make it in time.
            Overloaded: there is no place, or the queue is too long for the request's deadline.
        """
        left_s = deadline.left_s
        if left_s <= 0:
            raise deadline.exceeded("queue")
        idle_s = self._forecast.refuses(images, left_s) if deadline.exists else None
        if idle_s is not None:
            self._metrics.refused(self._model, "deadline_idle")
            raise deadline.hopeless(idle_s)
        if waiting + images > self._limit:
            raise self._full(images, waiting)
        if not deadline.exists:  # then nothing depends on it, and it takes a while if much waits
            return None
        predicted_s = self._forecast.request_s(images)
        if predicted_s is not None and self._forecast.is_late(images, predicted_s, left_s):
            raise self._late(images, waiting, deadline, predicted_s)
        return predicted_s

    def again(self, refused: Overloaded) -> Overloaded:
        """Return the error of an engine whose own queue was full, with the time to come again."""
        retry_after_s = whole_seconds(self._forecast.drained_s())
        facts = {**refused.details, "retry_after_s": retry_after_s}
        return Overloaded(refused.message, hint=f"try again in {retry_after_s} s", **facts)

    def _full(self, images: int, waiting: int) -> Overloaded:
        self._metrics.refused(self._model, "queue_full")
        retry_after_s = whole_seconds(self._forecast.drained_s())
        return Overloaded(
            f"{waiting} images wait already and {images} more would be too many.",
            hint=f"try again in {retry_after_s} s",
            got=images,
            waiting=waiting,
            limit=self._limit,
            retry_after_s=retry_after_s,
        )

    def _late(
        self, images: int, waiting: int, deadline: Deadline, predicted_s: float
    ) -> Overloaded:
        """Return the error of a request for which the queue is too long: when that much is made, it is not."""
        self._metrics.refused(self._model, "deadline_queue")
        retry_after_s = whole_seconds(predicted_s - deadline.left_s)
        return Overloaded(
            f"The queue is too long for a deadline of {deadline.total_ms:.0f} ms: "
            f"it would take {1e3 * predicted_s:.0f} ms.",
            hint=f"try again in {retry_after_s} s, or send a larger X-Deadline-Ms",
            got=images,
            waiting=waiting,
            deadline_ms=deadline.total_ms,
            predicted_ms=round(1e3 * predicted_s, 1),
            retry_after_s=retry_after_s,
        )


def whole_seconds(seconds: float | None) -> int:
    """Return the whole seconds after which to come again, at least 1; also 1 if nothing is known."""
    return max(1, math.ceil(seconds or 0))
