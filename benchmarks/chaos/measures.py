"""The two figures that promises are held to: a percentile that was really seen, and a slope with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_POINTS = 12


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed; NaN if there is none."""
    if not len(values):
        return math.nan
    return float(sorted(values)[max(0, math.ceil(share * len(values)) - 1)])


@dataclass(frozen=True)
class Slope:
    """How fast y grows with x, and between which values that lies with a confidence of 95 %."""

    value: float
    low: float
    high: float


def slope_of(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Slope:
    """Fit a line by least squares; the interval is a moving-block bootstrap of what the line leaves over.

    Memory grows in steps and falls back, so neighbouring samples are alike, and the textbook's interval, which takes
    them for independent, would be far too narrow. Blocks of neighbours are drawn instead, n^(1/2) samples long.

    Raises:
        ValueError: fewer than 12 points, or all at one x.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < MIN_POINTS or np.ptp(xs) == 0:
        raise ValueError(f"{len(xs)} points do not make a slope")
    weights = (xs - xs.mean()) / np.sum((xs - xs.mean()) ** 2)
    value = float(weights @ ys)
    left = ys - ys.mean() - value * (xs - xs.mean())
    block = math.ceil(math.sqrt(len(xs)))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(xs), (RESAMPLES, math.ceil(len(xs) / block)))
    # Blocks go round the end, or the first and last samples would be drawn too seldom.
    chosen = (starts[:, :, None] + np.arange(block)) % len(xs)
    drawn = left[chosen.reshape(RESAMPLES, -1)[:, : len(xs)]]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(value + drawn @ weights, (tail, 1 - tail))
    return Slope(value, float(low), float(high))
