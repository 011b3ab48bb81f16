"""A request for the frames of a path: key frames, and everything that the bytes between them depend on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cat_serve.contract import STUDIO_SLOTS, Batch, Output, StudioBatch
from cat_serve.errors import InvalidInput
from cat_serve.interpolation import Curve, Point, path
from cat_serve.latents import latent_from_seed
from cat_serve.mixtures import Mixture, class_of, slots
from cat_serve.wanted import ServedModel


@dataclass(frozen=True)
class Key:
    """A key frame: the image that /generate makes of the same class or mixture, and seed."""

    weights: Mixture
    seed: int


@dataclass(frozen=True, eq=False)
class PathRequest:
    """Frames of a path through key frames; see `cat_serve.interpolation`. Frame i is row i.

    A path of one class is made by the plain graph, any other by the studio graph from end to end: no frame flickers
    because its neighbour came from a graph of another precision.

    Raises:
        InvalidInput: `bad_mixture`, there are more classes between two key frames than can be mixed;
            `bad_truncation_psi`, the model has no truncation.
    """

    model: ServedModel
    keys: tuple[Key, ...]
    frames: int
    curve: Curve
    loop: bool
    truncation_psi: float

    def __post_init__(self) -> None:
        self.model.artefact.manifest.require_psi(self.truncation_psi)
        ways = itertools.pairwise([*self.keys, *self.keys[: int(self.loop)]])
        for number, (start, end) in enumerate(ways):
            classes = {*start.weights, *end.weights}
            if len(classes) > STUDIO_SLOTS:
                raise InvalidInput(
                    f"After key frame {number} {len(classes)} classes would be mixed.",
                    code="bad_mixture",
                    hint="put a key frame of one class between the two",
                    parameter="class",
                    got=len(classes),
                    accepted=f"at most {STUDIO_SLOTS} classes in two key frames together",
                )

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

    @property
    def needs_studio(self) -> bool:
        """See `Wanted.needs_studio`; a path of one class does not."""
        return len(self.class_ids) > 1

    def batch(self, start: int, stop: int) -> Batch | StudioBatch:
        """See `Rows.batch`."""
        points = self.points[start:stop]
        z = np.stack([point.z for point in points])
        psi = np.full(len(points), self.truncation_psi, dtype=np.float32)
        if self.needs_studio:
            return StudioBatch(z, *slots([point.weights for point in points]), psi)
        return Batch(z, np.full(len(points), self.class_ids[0], dtype=np.int64), psi)

    def kept(self, output: Output) -> Output:
        """See `Wanted.kept`."""
        return Output(output.images, output.ok)

    def facts_of(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Wanted.facts_of`."""
        return {"frames": list(rows)}

    def facts(self) -> dict[str, Any]:
        """Return what a file says of itself: how to make its frames."""
        names = self.model.classes.names
        return {
            "model": self.model.name,
            "version": self.model.artefact.version,
            "class": [class_of(key.weights) for key in self.keys],
            "class_names": {str(class_id): names[class_id] for class_id in self.class_ids},
            "seed": [key.seed for key in self.keys],
            "frames": self.frames,
            "interpolation": self.curve,
            "loop": self.loop,
            "truncation_psi": self.truncation_psi,
        }
