"""Paths between latents and classes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from cat_serve.errors import InvalidInput
from cat_serve.interpolation import Point, blend, lerp, path, schedule, slerp
from cat_serve.latents import latent_from_seed

TIMES = np.linspace(0, 1, 11)


def latent(seed: int, shape: tuple[int, ...] = (64,)) -> np.ndarray:
    return latent_from_seed(seed, shape)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    cosine = a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.arccos(np.clip(cosine, -1, 1)))


def test_slerp_turns_at_a_steady_pace_and_keeps_the_length() -> None:
    a, b = np.array([2.0, 0, 0]), np.array([0, 2.0, 0])
    for t in TIMES:
        point = slerp(a, b, t)
        expected = [2 * np.cos(t * np.pi / 2), 2 * np.sin(t * np.pi / 2), 0]
        assert np.allclose(point, expected, atol=1e-12)


@pytest.mark.parametrize("seeds", list(itertools.combinations(range(4), 2)))
def test_slerp_of_latents_covers_the_angle_in_equal_parts(seeds: tuple[int, int]) -> None:
    a, b = (latent(seed).astype(np.float64) for seed in seeds)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    points = [slerp(a, b, t) for t in TIMES]
    assert np.allclose([np.linalg.norm(point) for point in points], 1)
    turned = [angle(p, q) for p, q in itertools.pairwise(points)]
    assert np.allclose(turned, angle(a, b) / 10, atol=1e-7)


def test_lerp_is_a_line_and_shortens_latents() -> None:
    a, b = latent(0), latent(1)
    assert np.allclose(lerp(a, b, 0.25), 0.75 * a + 0.25 * b)
    assert np.linalg.norm(lerp(a, b, 0.5)) < 0.85 * np.linalg.norm(slerp(a, b, 0.5))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones(4), np.ones(4)),
        (np.ones(4), 3 * np.ones(4)),
        (np.ones(4), -np.ones(4)),
        (np.ones(4), -2 * np.ones(4)),
        (np.zeros(4), np.ones(4)),
        (np.zeros(4), np.zeros(4)),
        (np.array([2.0]), np.array([-3.0])),
        (latent(0), latent(0)),
        (latent(0), latent(0) * np.float32(1 + 1e-7)),
        (latent(0), -latent(0)),
    ],
)
def test_slerp_is_the_line_where_the_angle_says_nothing(a: np.ndarray, b: np.ndarray) -> None:
    for t in TIMES:
        assert np.array_equal(slerp(a, b, t), lerp(a, b, t))


def test_slerp_is_finite_and_near_both_ends_next_to_its_degenerate_cases() -> None:
    a = latent(0).astype(np.float64)
    for tiny in (1e-9, 1e-7, 1e-6, 1e-5, 1e-3):
        for b in (a + tiny * latent(1), -a + tiny * latent(1)):
            assert all(np.isfinite(slerp(a, b, t)).all() for t in TIMES)
            assert np.allclose(slerp(a, b, 0), a, atol=1e-6)
            assert np.allclose(slerp(a, b, 1), b, atol=1e-6)


def test_latents_keep_their_shape() -> None:
    a, b = latent(0, (2, 3, 4)), latent(1, (2, 3, 4))
    flat = slerp(a.ravel(), b.ravel(), 0.3)
    assert np.array_equal(slerp(a, b, 0.3), flat.reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("start", "end", "t", "expected"),
    [
        ({7: 1.0}, {9: 1.0}, 0.25, {7: 0.75, 9: 0.25}),
        ({7: 1.0}, {7: 1.0}, 0.3, {7: 1.0}),
        ({7: 1.0}, {9: 1.0}, 0.0, {7: 1.0}),
        ({7: 1.0}, {9: 1.0}, 1.0, {9: 1.0}),
        ({7: 0.5, 9: 0.5}, {9: 0.5, 3: 0.5}, 0.5, {3: 0.25, 7: 0.25, 9: 0.5}),
    ],
)
def test_classes_are_mixed_in_proportion(
    start: dict[int, float], end: dict[int, float], t: float, expected: dict[int, float]
) -> None:
    assert blend(start, end, t) == pytest.approx(expected)
    assert list(blend(start, end, t)) == sorted(expected)


@pytest.mark.parametrize(
    ("keys", "frames", "loop", "expected"),
    [
        (2, 2, False, [(0, 0), (1, 0)]),
        (2, 5, False, [(0, 0), (0, 0.25), (0, 0.5), (0, 0.75), (1, 0)]),
        (2, 4, True, [(0, 0), (0, 0.5), (1, 0), (1, 0.5)]),
        (3, 6, False, [(0, 0), (0, 0.5), (1, 0), (1, 1 / 3), (1, 2 / 3), (2, 0)]),
        (3, 3, True, [(0, 0), (1, 0), (2, 0)]),
    ],
)
def test_frames_are_spread_over_the_key_points(
    keys: int, frames: int, loop: bool, expected: list[tuple[int, float]]
) -> None:
    assert np.allclose(schedule(keys, frames, loop), expected)


@pytest.mark.parametrize("loop", [False, True])
def test_every_path_has_its_frames_and_shows_every_key_point(loop: bool) -> None:
    for keys in range(2, 8):
        for frames in range(keys, 40):
            moments = schedule(keys, frames, loop)
            assert len(moments) == frames
            assert [key for key, t in moments if t == 0] == list(range(keys))
            assert moments == sorted(moments)
            steps = [t for _, t in moments if t]
            assert all(0 < t < 1 for t in steps)
            lengths = {sum(key == way for key, _ in moments) for way in range(keys - (not loop))}
            assert max(lengths) - min(lengths) <= 1


def test_fewer_frames_than_key_points_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        schedule(4, 3, loop=False)
    assert caught.value.code == "bad_frames"
    assert "from 4" in caught.value.details["accepted"]


@pytest.mark.parametrize("curve", ["slerp", "lerp"])
def test_path_holds_its_key_points_to_the_bit(curve: Any) -> None:
    keys = [Point(latent(seed), {seed: 1.0}) for seed in range(3)]
    points = path(keys, 9, curve, loop=False)
    assert [points[index] for index in (0, 4, 8)] == keys
    assert all(point.z.dtype == np.float32 for point in points)
    assert all(sum(point.weights.values()) == pytest.approx(1) for point in points)
    middle = {"slerp": slerp, "lerp": lerp}[curve](keys[0].z, keys[1].z, 0.5)
    assert np.array_equal(points[2].z, middle.astype(np.float32))
    assert points[2].weights == {0: 0.5, 1: 0.5}


def test_loop_returns_to_the_first_key_point_and_shows_it_once() -> None:
    keys = [Point(latent(seed), {0: 1.0}) for seed in range(2)]
    points = path(keys, 6, "lerp", loop=True)
    assert [index for index, point in enumerate(points) if point in keys] == [0, 3]
    assert np.allclose(points[5].z, (keys[1].z + 2 * keys[0].z) / 3, atol=1e-6)
