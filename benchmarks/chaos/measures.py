"""The two figures that promises are held to: a percentile that was really seen, and a slope with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 12
STUDENT_T = 2.228  # 97.5 % of Student's t with BLOCKS - 2 degrees of freedom


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


def slope_of(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Fit a line by least squares to the means of twelve blocks of neighbouring points ("batch means").

    Memory grows in steps and falls back, so neighbouring samples are alike, and an interval that takes them for
    independent would be far too narrow. Means of blocks that are longer than such a likeness are nearly independent.

    Raises:
        ValueError: fewer than 12 points, or all at one x.
    """
    if len(x) < BLOCKS or np.ptp(x) == 0:
        raise ValueError(f"{len(x)} points do not make a slope")
    xs, ys = (np.array([part.mean() for part in np.array_split(np.asarray(v, float), BLOCKS)]) for v in (x, y))  # fmt: skip
    centred = xs - xs.mean()
    spread = np.sum(centred**2)
    value = float(centred @ ys / spread)
    left = ys - ys.mean() - value * centred
    margin = STUDENT_T * math.sqrt(float(np.sum(left**2)) / (BLOCKS - 2) / float(spread))
    return Slope(value, value - margin, value + margin)
