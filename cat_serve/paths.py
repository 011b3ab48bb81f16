"""A request for the frames of a path: key frames, and everything that the bytes between them depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cat_serve.contract import Batch
from cat_serve.interpolation import Curve, Point, path
from cat_serve.latents import latent_from_seed
from cat_serve.service import ServedModel


@dataclass(frozen=True)
class Key:
    """A key frame: the image that /generate makes of the same class and seed.

    Attributes:
        weights: share of each class by its index, all above 0, with the sum 1.
    """

    weights: Mapping[int, float]
    seed: int


@dataclass(frozen=True, eq=False)
class PathRequest:
    """Frames of a path through key frames; see `cat_serve.interpolation`. Frame i is row i."""

    model: ServedModel
    keys: tuple[Key, ...]
    frames: int
    curve: Curve
    loop: bool
    truncation_psi: float

    def __len__(self) -> int:
        return self.frames

    @property
    def class_ids(self) -> list[int]:
        """Return every class that has a share in some frame."""
        return sorted({class_id for key in self.keys for class_id in key.weights})

    @cached_property
    def points(self) -> list[Point]:
        """Return what every frame is made of."""
        z_shape = self.model.artefact.manifest.z_shape
        keys = [Point(latent_from_seed(key.seed, z_shape), key.weights) for key in self.keys]
        return path(keys, self.frames, self.curve, self.loop)

    def batch(self, start: int, stop: int) -> Batch:
        """See `Rows.batch`; for paths of one class."""
        points = self.points[start:stop]
        (class_id,) = self.class_ids
        return Batch(
            np.stack([point.z for point in points]),
            np.full(len(points), class_id, dtype=np.int64),
            np.full(len(points), self.truncation_psi, dtype=np.float32),
        )

    def facts(self) -> dict[str, Any]:
        """Return what a file says of itself: how to make its frames."""
        names = self.model.classes.names
        return {
            "model": self.model.name,
            "version": self.model.artefact.version,
            "class": [_class_of(key) for key in self.keys],
            "class_names": {str(class_id): names[class_id] for class_id in self.class_ids},
            "seed": [key.seed for key in self.keys],
            "frames": self.frames,
            "interpolation": self.curve,
            "loop": self.loop,
            "truncation_psi": self.truncation_psi,
        }


def _class_of(key: Key) -> int | str:
    """Return the class as a request may name it: an index, or shares by index."""
    if len(key.weights) == 1:
        return next(iter(key.weights))
    return ",".join(f"{class_id}:{share!r}" for class_id, share in key.weights.items())
