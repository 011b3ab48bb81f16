"""How long a forward pass takes, learned from the passes that were seen: seconds = a * images + b."""

from __future__ import annotations

from typing import NamedTuple

MEMORY = 0.9  # what a pass counts for after the next one
SHORT_MEMORY = 0.5  # the same when that one shows that conditions have changed
CHANGED = 2.0  # times as long, or as short, as was expected
RIDGE = 1e-3  # weight of the belief that a pass costs nothing but its images
PATIENCE = 0.9  # what a prediction counts for after every refusal that nothing confirmed


class Line(NamedTuple):
    """seconds = per_image_s * images + per_pass_s."""

    per_image_s: float
    per_pass_s: float

    def at(self, images: float) -> float:
        return self.per_image_s * images + self.per_pass_s


class Pace:
    """Least squares over (images, seconds) in which old passes count exponentially less.

    Minimises sum of w_i (a n_i + b - t_i)^2 + RIDGE * sum(w) * b^2 with a, b >= 0, where w is MEMORY to the number of
    passes since. The second term decides while all passes had one size, when any line through that point
    fits: b is then 0. A pass that took more than CHANGED times what was expected, or less than its inverse, makes all
    before it count for SHORT_MEMORY only, so that a slow start or a slower machine is not averaged for long.

    Attributes:
        passes: how many were seen.
        trust: what the prediction counts for, see `refuses`; 1 until somebody was refused.
    """

    def __init__(self) -> None:
        self.passes = 0
        self._weight = 0.0
        self._n = self._nn = self._t = self._nt = 0.0
        self._line: Line | None = None
        self.trust = 1.0
        self._refused = 0

    @property
    def line(self) -> Line | None:
        """What was learned; None before the first pass."""
        return self._line

    def add(self, images: int, seconds: float) -> None:
        """Learn from a pass that took `seconds` of an engine that it had to itself."""
        memory = SHORT_MEMORY if self._is_news(images, seconds) else MEMORY
        self.passes += 1
        self._weight = memory * self._weight + 1
        self._n = memory * self._n + images
        self._nn = memory * self._nn + images * images
        self._t = memory * self._t + seconds
        self._nt = memory * self._nt + images * seconds
        self._line = self._fitted()
        if images >= self._refused:  # what was refused would have been a pass like this one
            self.trust, self._refused = 1.0, 0

    def seconds_for(self, images: int) -> float:
        """Return how long a pass of so many images takes; 0 before the first pass."""
        return 0.0 if self._line is None else self._line.at(images)

    def refuses(self, images: int, predicted_s: float, left_s: float) -> bool:
        """Say whether a request must be refused because even an idle engine needs `predicted_s` for it, and it has less.

        Every refusal makes the prediction count for less until a pass as large has been seen, so that one slow start
        cannot refuse for ever: now and then somebody is let through, and shows how it is.
        """
        if self.trust * predicted_s <= left_s:
            return False
        self.trust *= PATIENCE
        self._refused = max(self._refused, images)
        return True

    def _is_news(self, images: int, seconds: float) -> bool:
        expected_s = self.seconds_for(images)
        return expected_s > 0 and not expected_s / CHANGED <= seconds <= expected_s * CHANGED

    def _fitted(self) -> Line:
        """Solve the normal equations; where the best line has a negative number, the best without it is one of the axes."""
        b_weight = self._weight * (1 + RIDGE)
        determinant = self._nn * b_weight - self._n * self._n  # > 0: Cauchy-Schwarz, and the ridge
        a = (self._nt * b_weight - self._n * self._t) / determinant
        b = (self._nn * self._t - self._n * self._nt) / determinant
        if b < 0:
            return Line(self._nt / self._nn, 0.0)
        if a < 0:
            return Line(0.0, self._t / b_weight)
        return Line(a, b)
