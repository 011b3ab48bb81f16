"""A model on an engine of this process, without server and queue: what `cat-serve generate` and `bench` compute with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cat_serve.backends import BACKENDS, open_backend
from cat_serve.backends.base import Backend, EngineOptions
from cat_serve.classes import Classes
from cat_serve.contract import Batch, Output
from cat_serve.errors import InvalidInput
from cat_serve.golden import check_golden
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings
from cat_serve.showable import require_showable
from cat_serve.wanted import ImageRequest, ServedModel


@dataclass(frozen=True)
class Embedded:
    """One model, loaded and proved.

    Attributes:
        batch: images in one forward pass at most.
    """

    model: ServedModel
    backend: Backend
    batch: int

    def images(
        self,
        class_id: Sequence[int],
        seeds: Sequence[int],
        truncation_psi: float,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> np.ndarray:
        """Make one image for each class and seed, uint8 [n, H, W, 3], in passes of `batch` rows.

        Args:
            progress: told after every pass how many images it made.

        Raises:
            BackendError: the engine failed.
            BadOutput: it made something that must not be shown.
        """
        parts = []
        for start in range(0, len(seeds), self.batch):
            rows = slice(start, start + self.batch)
            asked = self.inputs(class_id[rows], seeds[rows], truncation_psi)
            output = self.backend.run(asked)
            self._require_showable(output, asked, seeds[rows])
            parts.append(output.images)
            progress(len(output.images))
        return np.concatenate(parts)

    def inputs(self, class_id: Sequence[int], seeds: Sequence[int], truncation_psi: float) -> Batch:
        """Return the inputs of one pass; the latents are those that the service makes of these seeds."""
        return Batch(
            latents_from_seeds(seeds, self.model.artefact.manifest.z_shape),
            np.array(class_id, dtype=np.int64),
            np.full(len(seeds), truncation_psi, dtype=np.float32),
        )

    def _require_showable(self, output: Output, asked: Batch, seeds: Sequence[int]) -> None:
        """Hold every row to what the service holds it to."""
        for row, seed in enumerate(seeds):
            class_id, psi = int(asked.class_id[row]), float(asked.truncation_psi[row])
            alone = Output(output.images[row : row + 1], output.ok[row : row + 1])
            require_showable(alone, ImageRequest.of(self.model, class_id, seed, psi))


@contextmanager
def embedded(artefact: Artefact, settings: Settings) -> Iterator[Embedded]:
    """Open a model as the settings say, with `max_batch` as the size of a pass, and prove it by its golden images.

    Raises:
        InvalidInput: the settings' backend computes elsewhere.
        MissingDependency, ArtefactError: see `open_backend`.
        BadOutput: it does not make its golden images.
    """
    require_here(settings)
    options = EngineOptions(
        provider=settings.provider,
        threads=settings.threads,
        checkpoints=settings.checkpoints,
        precision=settings.precision,
    )
    backend = open_backend(settings.backend, artefact, options)
    try:
        check_golden(backend)
        manifest = artefact.manifest
        model = ServedModel(artefact, Classes(manifest.model, manifest.class_names))
        yield Embedded(model, backend, min(settings.max_batch, manifest.max_batch))
    finally:
        backend.close()


def require_here(settings: Settings) -> None:
    """Refuse a backend that computes elsewhere.

    Raises:
        InvalidInput: it does.
    """
    if settings.backend not in BACKENDS:
        raise InvalidInput(
            f"The backend {settings.backend} computes in other processes, and this command in its own.",
            hint="--backend onnxruntime, or --backend torch with --checkpoints",
        )
