"""Percentiles and slopes against closed forms, and how often the interval of a slope holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.chaos.measures import percentile, slope_of


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.2, 0.21, 0.5, 0.99, 1)] == [1, 2, 3, 5, 5]
    assert percentile(list(range(1, 201)), 0.99) == 198
    assert math.isnan(percentile([], 0.5))


def test_slope_of_a_line_is_its_own_and_certain() -> None:
    x = np.arange(50) * 3.0
    slope = slope_of(x, 7 + 2.5 * x)
    assert slope.value == pytest.approx(2.5)
    assert slope.low == pytest.approx(2.5, abs=1e-9)
    assert slope.high == pytest.approx(2.5, abs=1e-9)


def test_slope_and_interval_are_those_of_least_squares_over_means_of_blocks() -> None:
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.random(48)), rng.random(48)
    means_x, means_y = (values.reshape(12, 4).mean(axis=1) for values in (x, y))
    (expected, _), covariance = np.polyfit(means_x, means_y, 1, cov=True)
    slope = slope_of(x, y)
    assert slope.value == pytest.approx(expected)
    assert slope.high - slope.value == pytest.approx(2.228 * np.sqrt(covariance[0, 0]), rel=1e-3)
    assert slope.low + slope.high == pytest.approx(2 * slope.value)


@pytest.mark.parametrize(
    ("memory", "least"), [(0.0, 180), (0.8, 170)], ids=["independent", "alike neighbours"]
)
def test_interval_holds_the_truth_about_as_often_as_it_says(memory: float, least: int) -> None:
    """Of noise in which each value carries on 0.8 of the one before, the textbook's interval holds it half the time."""
    rng = np.random.default_rng(0)
    x, held = np.arange(150.0), 0
    for _ in range(200):
        noise = rng.normal(size=len(x))
        for i in range(1, len(x)):
            noise[i] += memory * noise[i - 1]
        slope = slope_of(x, 0.1 * x + noise)
        held += slope.low <= 0.1 <= slope.high
    assert least <= held <= 198  # of 200; 190 would be right


def test_interval_shrinks_with_the_noise() -> None:
    rng = np.random.default_rng(0)
    x, noise = np.arange(100.0), rng.normal(size=100)
    wide, narrow = slope_of(x, noise), slope_of(x, noise / 10)
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 10)


@pytest.mark.parametrize("x", [[1.0] * 20, list(range(11))], ids=["one x", "too few"])
def test_too_little_makes_no_slope(x: list[float]) -> None:
    with pytest.raises(ValueError, match="do not make a slope"):
        slope_of(x, list(range(len(x))))
