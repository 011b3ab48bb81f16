"""What may be asked of the service: images of one class or mixture, or explicit rows of the studio graph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from cat_serve.classes import Classes
from cat_serve.contract import Batch, Output, StudioBatch, StudioOutput
from cat_serve.latents import latents_from_seeds, seed_range
from cat_serve.manifest import Artefact
from cat_serve.mixtures import Mixture, class_text, slots


@dataclass(frozen=True)
class ServedModel:
    """A model that may be asked for images."""

    artefact: Artefact
    classes: Classes

    @property
    def name(self) -> str:
        return self.artefact.manifest.model

    @cached_property
    def label(self) -> str:
        """The model's public name, `name@version`."""
        return f"{self.name}@{self.artefact.version}"


class Wanted(Protocol):
    """Images of one model, row by row."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def needs_studio(self) -> bool:
        """Whether the rows are inputs of the studio graph, not of the plain one."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Batch | StudioBatch:
        """See `Rows.batch`."""

    def kept(self, output: Output) -> Output:
        """Return what is wanted of the engine's answer to some of the rows; the rest is forgotten at once."""

    def facts_of(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return which images these rows are, for the error of images that must not be shown."""


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """Images of one class or mixture: everything that their bytes depend on.

    Attributes:
        mixture: share of each class by its index.
        seeds: of each image; empty if there is a `z`.
        stage: whose image is wanted, from 1; None: the last one's, which is the image itself.
        z: float32, of the model's z_shape: of the only image, instead of a seed.

    Raises:
        InvalidInput: `bad_truncation_psi`, the model has no truncation.
    """

    model: ServedModel
    mixture: Mixture
    seeds: Sequence[int]
    truncation_psi: float
    stage: int | None = None
    z: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.model.artefact.manifest.require_psi(self.truncation_psi)

    @classmethod
    def of(
        cls, model: ServedModel, class_id: int, seed: int, truncation_psi: float, n: int = 1
    ) -> ImageRequest:
        """Return the request for `n` images of a class, image i with seed + i.

        Raises:
            InvalidInput: the seeds would pass the last one there is.
        """
        return cls(model, {class_id: 1.0}, seed_range(seed, n), truncation_psi)

    def __len__(self) -> int:
        return self.n

    @property
    def n(self) -> int:
        return len(self.seeds) if self.z is None else 1

    @property
    def class_id(self) -> int | None:
        """The class; None if it is a mixture."""
        return next(iter(self.mixture)) if len(self.mixture) == 1 else None

    @property
    def seed(self) -> int | None:
        """The seed of the first image; None if there is a `z` instead."""
        return self.seeds[0] if self.z is None else None

    @property
    def z_sha256(self) -> str | None:
        """The SHA-256 of the explicit z: of its float32, little-endian, in C order."""
        return (
            None if self.z is None else hashlib.sha256(self.z.astype("<f4").tobytes()).hexdigest()
        )

    @property
    def needs_studio(self) -> bool:
        return len(self.mixture) > 1 or self.stage is not None

    def batch(self, start: int, stop: int) -> Batch | StudioBatch:
        """See `Rows.batch`."""
        psi = np.full(stop - start, self.truncation_psi, dtype=np.float32)
        if self.needs_studio:
            return StudioBatch(
                self.latents(start, stop), *slots([self.mixture] * (stop - start)), psi
            )
        class_id = np.full(stop - start, self.class_id, dtype=np.int64)
        return Batch(self.latents(start, stop), class_id, psi)

    def latents(self, start: int, stop: int) -> np.ndarray:
        """Return z of the rows `start` to `stop` - 1, float32 [stop - start, *z_shape]."""
        if self.z is not None:
            return self.z[None]
        return latents_from_seeds(self.seeds[start:stop], self.model.artefact.manifest.z_shape)

    def kept(self, output: Output) -> Output:
        """See `Wanted.kept`."""
        if self.stage is not None and isinstance(output, StudioOutput):
            return Output(output.stage_images[:, self.stage - 1].copy(), output.ok)
        return Output(output.images, output.ok)

    def facts_of(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Wanted.facts_of`."""
        which: dict[str, Any] = (
            {"seeds": [self.seeds[row] for row in rows]}
            if self.z is None
            else {"z_sha256": self.z_sha256}
        )
        stage = {} if self.stage is None else {"stage": self.stage}
        classes = (
            {"class_id": self.class_id}
            if self.class_id is not None
            else {"class": class_text(self.mixture)}
        )
        return {**classes, "truncation_psi": self.truncation_psi, **stage, **which}


@dataclass(frozen=True, eq=False)
class StudioRequest:
    """Explicit rows of the studio graph.

    Attributes:
        rows: z float32 [n, *z_shape], class_id int64 [n, 4], class_weight float32 [n, 4], truncation_psi float32 [n].
        stages: whether the images of all stages are wanted, too.
    """

    model: ServedModel
    rows: StudioBatch
    stages: bool = False

    needs_studio = True

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, start: int, stop: int) -> StudioBatch:
        """See `Rows.batch`."""
        rows, some = self.rows, slice(start, stop)
        return StudioBatch(
            rows.z[some], rows.class_id[some], rows.class_weight[some], rows.truncation_psi[some]
        )

    def kept(self, output: Output) -> Output:
        """See `Wanted.kept`."""
        return output if self.stages else Output(output.images, output.ok)

    def facts_of(self, rows: Sequence[int]) -> dict[str, Any]:
        """See `Wanted.facts_of`."""
        return {"rows": list(rows)}
