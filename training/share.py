"""Which samples of the global batch one process looks at.

Every random draw is made for the whole batch, by every process, and each takes its rows. So the number of
processes changes nothing but who computes what.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cat_serve.errors import InvalidInput


@dataclass(frozen=True)
class Share:
    """Samples `start` .. `stop - 1` of a batch of `total`."""

    start: int
    stop: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Share:
        """Return the share of a process that is alone."""
        return cls(0, total, total)

    @classmethod
    def of(cls, rank: int, processes: int, total: int) -> Share:
        """Cut the batch into consecutive shares whose sizes differ by one at most.

        Raises:
            InvalidInput: there are more processes than samples.
        """
        if total < processes:
            raise InvalidInput(
                f"A batch of {total} is too small for {processes} processes.",
                hint="give a larger --batch-size, or start fewer processes",
            )
        return cls(rank * total // processes, (rank + 1) * total // processes, total)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def weight(self) -> float:
        """The share's weight in a mean over the batch; 1 for the whole batch."""
        return (self.stop - self.start) / self.total

    def every(self, n: int) -> tuple[slice, Share]:
        """Pick the samples whose position in the whole batch is a multiple of n.

        Returns:
            their rows within this share, and this share of the batch that all such samples make.
        """
        picked = Share(*(-(-position // n) for position in (self.start, self.stop, self.total)))
        return slice(-self.start % n, None, n), picked

    def of_mean(self, mean: Tensor) -> Tensor:
        """Turn a mean over the share's samples into its part of the mean over the whole batch."""
        return mean if self.weight == 1 else mean * self.weight
