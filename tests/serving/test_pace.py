"""What is learned from passes: against closed forms, noise and sudden changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cat_serve.pace import CHANGED, MEMORY, RIDGE, SHORT_MEMORY, Pace

positive = st.floats(1e-4, 10.0)
sizes = st.lists(st.integers(1, 64), min_size=2, max_size=40)


def learned(passes: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for images, seconds in passes:
        pace.add(images, seconds)
    return pace


def test_nothing_is_known_before_the_first_pass() -> None:
    pace = Pace()
    assert pace.line is None
    assert not pace.refuses(1, 0.0, 0.001)


@given(positive, st.integers(1, 64), st.integers(1, 30))
def test_passes_of_one_size_cost_what_their_images_cost(
    seconds: float, images: int, count: int
) -> None:
    line = learned([(images, seconds)] * count).line
    assert line is not None
    assert line.at(images) == pytest.approx(seconds, rel=1e-6)
    assert line.at(2 * images) == pytest.approx(2 * seconds, rel=1e-6)


@given(positive, positive, st.permutations([1, 2, 4, 8, 16, 16, 8, 3]))
def test_line_is_found_again(per_image_s: float, per_pass_s: float, images: list[int]) -> None:
    line = learned([(n, per_image_s * n + per_pass_s) for n in images * 4]).line
    assert line is not None
    for n in range(1, 17):
        assert line.at(n) == pytest.approx(per_image_s * n + per_pass_s, rel=0.02)


@settings(max_examples=60)
@given(sizes, st.integers(0, 2**32 - 1))
def test_line_is_the_weighted_least_squares_of_numpy(images: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = np.array(images, float)
    t = (0.01 + 0.02 * n) * draw.uniform(0.8, 1.2, len(n))
    pace, weight = Pace(), np.zeros(len(n))
    for i, (count, seconds) in enumerate(zip(images, t.tolist(), strict=True)):
        expected_s = pace.seconds_for(count)
        as_before = i == 0 or 1 / CHANGED <= seconds / expected_s <= CHANGED
        weight *= MEMORY if as_before else SHORT_MEMORY
        weight[i] = 1
        pace.add(count, seconds)
    line = pace.line
    assert line is not None

    def cost(a: float, b: float) -> float:
        return float(weight @ (a * n + b - t) ** 2 + RIDGE * weight.sum() * b * b)

    rows = np.sqrt(weight)[:, None] * np.stack([n, np.ones_like(n)], axis=1)
    prior = np.array([[0.0, np.sqrt(RIDGE * weight.sum())]])
    answer = np.append(np.sqrt(weight) * t, 0.0)
    best = np.linalg.lstsq(np.append(rows, prior, axis=0), answer)[0]
    if min(best) >= 0:
        assert line == pytest.approx(tuple(best), rel=1e-3, abs=1e-6)
        return
    assert min(line) == pytest.approx(
        0, abs=1e-9
    )  # neither number may be negative: then the best is on an axis
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert cost(*line) <= cost(line[0] * factor, line[1] * factor)
    assert cost(*line) <= min(cost(0, float(t.mean())), cost(float(t @ n / (n @ n)), 1e-4))


@given(positive, positive, st.integers(0, 2**32 - 1))
def test_noise_of_a_tenth_moves_the_prediction_by_less_than_a_fifth(
    per_image_s: float, per_pass_s: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    images = draw.integers(1, 17, 60)
    noise = draw.uniform(0.9, 1.1, 60)
    true = per_image_s * images + per_pass_s
    line = learned(list(zip(images.tolist(), (true * noise).tolist(), strict=True))).line
    assert line is not None
    assert min(line) >= 0
    assert line.at(8) == pytest.approx(8 * per_image_s + per_pass_s, rel=0.2)


@given(st.sampled_from([20.0, 1 / 20]), st.integers(1, 16))
def test_change_of_conditions_is_learned_within_fifteen_passes(factor: float, images: int) -> None:
    pace = learned([(images, 0.1)] * 50 + [(images, 0.1 * factor)] * 15)
    assert pace.seconds_for(images) == pytest.approx(0.1 * factor, rel=0.25)


def test_one_slow_start_does_not_refuse_for_ever() -> None:
    pace = learned([(4, 10.0)])
    assert pace.refuses(4, 10.0, 9.0)
    assert not pace.refuses(4, 10.0, 11.0)
    assert any(not pace.refuses(4, 10.0, 1.0) for _ in range(30))
    pace.add(1, 2.5)  # a smaller pass proves nothing
    assert not pace.refuses(4, 10.0, 1.0)
    pace.add(4, 10.0)
    assert pace.refuses(4, 10.0, 9.0)
