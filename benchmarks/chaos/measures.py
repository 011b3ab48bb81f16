"""The two figures that promises are held to: a percentile that was really seen, and how fast memory grows, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 24
LOW_RANK, HIGH_RANK = (
    6,
    16,
)  # from 0, of 23 growths: the median lies between them in 96.5 % of cases


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed; NaN if there is none."""
    if not len(values):
        return math.nan
    return float(sorted(values)[max(0, math.ceil(share * len(values)) - 1)])


@dataclass(frozen=True)
class Growth:
    """How fast y usually grows with x, and between which values that lies with a confidence of 96 %."""

    value: float
    low: float
    high: float


def usual_growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """Return the median growth of y a unit of x, between the means of 24 blocks of neighbouring points.

    Memory grows in steps: an allocator takes another arena when a peak was higher than all before, once for good. A
    straight line takes one such step in the middle for a slope. The median of growths from block to block does not see
    single steps, however high, while a leak is in every one of them. The interval is the one between two order
    statistics, which holds the median whatever the distribution (the sign test).

    Raises:
        ValueError: fewer than 24 points, or two blocks at one x.
    """
    if len(x) < BLOCKS:
        raise ValueError(f"{len(x)} points do not make a growth")
    xs, ys = (np.array([part.mean() for part in np.array_split(np.asarray(v, float), BLOCKS)]) for v in (x, y))  # fmt: skip
    if not (np.diff(xs) > 0).all():
        raise ValueError("x stands still, which does not make a growth")
    growths = np.sort(np.diff(ys) / np.diff(xs))
    low, high = growths[LOW_RANK], growths[HIGH_RANK]
    return Growth(float(np.median(growths)), float(low), float(high))
