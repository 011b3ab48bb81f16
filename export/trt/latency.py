"""How long an engine takes for a batch: whole calls, from arrays on the host to arrays on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.probes import rows

if TYPE_CHECKING:
    from export.probes import Engine

WARM_UP = 3
REPEATS = 50


@dataclass(frozen=True)
class Latency:
    """Calls with batches of one size, one after the other.

    Attributes:
        images_per_s: at the median.
    """

    batch: int
    calls: int
    median_ms: float
    p95_ms: float
    images_per_s: float

    @classmethod
    def of(cls, batch: int, seconds: Sequence[float]) -> Latency:
        """Sum up the durations of some calls."""
        median_s, p95_s = (float(np.percentile(seconds, percent)) for percent in (50, 95))
        return cls(batch, len(seconds), round(median_s * 1e3, 3), round(p95_s * 1e3, 3),
                   round(batch / median_s, 1))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def batch_sizes(min_batch: int, max_batch: int) -> tuple[int, ...]:
    """Return the powers of two that an engine takes, and its limits."""
    powers = (2**i for i in range(max_batch.bit_length()))
    return tuple(
        sorted({min_batch, max_batch, *(n for n in powers if min_batch <= n <= max_batch)})
    )


def measure(
    engine: Engine,
    batch: Any,
    sizes: Sequence[int],
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Time an engine for batches of some sizes, after a few calls that do not count.

    Args:
        batch: rows to take from, repeated where a batch is larger.
        clock: returns seconds.
    """
    results = []
    for size in sizes:
        part = rows(batch, np.arange(size) % len(batch))
        for _ in range(WARM_UP):
            engine(part)
        seconds = []
        for _ in range(repeats):
            started = clock()
            engine(part)
            seconds.append(clock() - started)
        results.append(Latency.of(size, seconds))
    return results
