"""Percentiles and growths against closed forms, and how often the interval of a growth holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.chaos.measures import percentile, usual_growth


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.2, 0.21, 0.5, 0.99, 1)] == [1, 2, 3, 5, 5]
    assert percentile(list(range(1, 201)), 0.99) == 198
    assert math.isnan(percentile([], 0.5))


def test_growth_of_a_line_is_its_own_and_certain() -> None:
    x = np.arange(50) * 3.0
    growth = usual_growth(x, 7 + 2.5 * x)
    assert growth.value == pytest.approx(2.5)
    assert growth.low == pytest.approx(2.5)
    assert growth.high == pytest.approx(2.5)


def test_single_steps_are_no_growth_and_do_not_hide_one() -> None:
    x = np.arange(120.0)
    steps = np.where(x > 50, 1e7, 0.0) + np.where(x > 80, 3e7, 0.0)
    assert usual_growth(x, steps).high == 0
    leaking = usual_growth(x, steps + 5000 * x)
    assert leaking.low == leaking.value == pytest.approx(5000)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_leak_in_every_block_is_found_though_it_comes_in_steps(every: int) -> None:
    x = np.arange(240.0)
    growth = usual_growth(x, 1000.0 * every * (x // every))
    assert growth.value == pytest.approx(1000, rel=0.3)
    assert growth.high >= 1000


@pytest.mark.parametrize("memory", [0.0, 0.8], ids=["independent", "alike neighbours"])
def test_interval_holds_the_truth_about_as_often_as_it_says(memory: float) -> None:
    rng = np.random.default_rng(0)
    x, held = np.arange(150.0), 0
    for _ in range(200):
        noise = rng.normal(size=len(x))
        for i in range(1, len(x)):
            noise[i] += memory * noise[i - 1]
        growth = usual_growth(x, 0.1 * x + noise)
        held += growth.low <= 0.1 <= growth.high
    assert (
        held >= 185
    )  # of 200; neighbouring growths of noise are opposed, so that it holds more often


def test_interval_shrinks_with_the_noise() -> None:
    rng = np.random.default_rng(0)
    x, noise = np.arange(100.0), rng.normal(size=100)
    wide, narrow = usual_growth(x, noise), usual_growth(x, noise / 10)
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 10)


@pytest.mark.parametrize("x", [[1.0] * 30, list(range(23))], ids=["one x", "too few"])
def test_too_little_makes_no_growth(x: list[float]) -> None:
    with pytest.raises(ValueError, match="not make a growth"):
        usual_growth(x, list(range(len(x))))
