"""Paths from image to image: latents on a circle or a line, classes as mixtures.

A path runs through key points, and shows every one of them exactly. Between two it has equal steps; where frames and
key points do not divide evenly, steps between one pair are shorter than between another by at most one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cat_serve.errors import InvalidInput

Curve = Literal["slerp", "lerp"]

CURVES: tuple[Curve, ...] = get_args(Curve)
MIN_KEYS = 2
# Below this angle (and as near to a straight angle) the weights of slerp are quotients of rounding errors.
SMALLEST_ANGLE = 1e-6


@dataclass(frozen=True, eq=False)
class Point:
    """What one image is made of.

    Attributes:
        z: float32, of the model's z_shape.
        weights: share of each class by its index, all above 0, with the sum 1.
    """

    z: np.ndarray
    weights: Mapping[int, float]


def lerp(start: np.ndarray, end: np.ndarray, t: float) -> np.ndarray:
    """Return (1 - t) start + t end, float64.

    Halfway between two independent latents this has 0.71 of their length: a latent unlike those of training.
    """
    return (1 - t) * start.astype(np.float64) + t * end.astype(np.float64)


def slerp(start: np.ndarray, end: np.ndarray, t: float) -> np.ndarray:
    """Turn `start` towards `end`, float64: sin((1-t)a)/sin(a) start + sin(ta)/sin(a) end, a the angle between them.

    Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985); for latents of generators
    White, "Sampling Generative Networks" (arXiv:1609.04468), section 2.1. As there, the angle is that of the
    directions and the vectors keep their lengths. Deviation: where the angle says nothing (equal directions, opposite
    ones, a vector of zeros) the path is the straight line; between opposite directions no great circle is the nearest.
    """
    a, b = start.astype(np.float64).ravel(), end.astype(np.float64).ravel()
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    if not lengths > 0:
        return lerp(start, end, t)
    angle = float(np.arccos(np.clip(a @ b / lengths, -1.0, 1.0)))
    if min(angle, np.pi - angle) < SMALLEST_ANGLE:
        return lerp(start, end, t)
    mixed = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return mixed.reshape(start.shape)


CURVE_OF = {"slerp": slerp, "lerp": lerp}


def blend(start: Mapping[int, float], end: Mapping[int, float], t: float) -> dict[int, float]:
    """Return the mixture (1 - t) start + t end; classes without a share are left out."""
    if start == end:
        return dict(start)
    shares = {
        class_id: (1 - t) * start.get(class_id, 0.0) + t * end.get(class_id, 0.0)
        for class_id in sorted({*start, *end})
    }
    return {class_id: share for class_id, share in shares.items() if share > 0}


def schedule(keys: int, frames: int, loop: bool) -> list[tuple[int, float]]:
    """Return for every frame the key point before it, and how far it is on the way to the next, 0 <= t < 1.

    Open paths end with their last key point. A loop goes on to the first one, which is not shown twice.

    Raises:
        InvalidInput: `bad_frames`, there are fewer frames than key points.
    """
    if frames < keys:
        raise InvalidInput(
            f"{keys} key frames need as many frames, and frames is {frames}.",
            code="bad_frames",
            hint="every key frame is shown",
            parameter="frames",
            got=frames,
            accepted=f"an integer from {keys}",
        )
    ways, steps = (keys, frames) if loop else (keys - 1, frames - 1)
    starts = [way * steps // ways for way in range(ways + 1)]
    moments = [
        (way, (step - starts[way]) / (starts[way + 1] - starts[way]))
        for way in range(ways)
        for step in range(starts[way], starts[way + 1])
    ]
    return moments if loop else [*moments, (keys - 1, 0.0)]


def path(keys: Sequence[Point], frames: int, curve: Curve, loop: bool) -> list[Point]:
    """Return the points of all frames; at a key point it is the key point itself, to the bit.

    Raises:
        InvalidInput: see `schedule`.
    """
    return [_between(keys, key, t, curve) for key, t in schedule(len(keys), frames, loop)]


def _between(keys: Sequence[Point], key: int, t: float, curve: Curve) -> Point:
    start, end = keys[key], keys[(key + 1) % len(keys)]
    if t == 0:
        return start
    z = CURVE_OF[curve](start.z, end.z, t).astype(np.float32)
    return Point(z, blend(start.weights, end.weights, t))
