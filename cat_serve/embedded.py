"""A model on an engine of this process, without server and queue: what `cat-serve generate` and `bench` compute with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cat_serve.backends import BACKENDS, open_backend
from cat_serve.backends.base import Backend, EngineOptions, StudioBackend
from cat_serve.classes import Classes
from cat_serve.contract import Batch, Output, StudioBatch
from cat_serve.errors import InvalidInput
from cat_serve.golden import check_golden, check_studio_golden
from cat_serve.latents import latents_from_seeds, seed_range
from cat_serve.manifest import Artefact
from cat_serve.mixtures import Mixture, slots
from cat_serve.settings import Settings
from cat_serve.showable import require_showable
from cat_serve.wanted import ImageRequest, ServedModel


@dataclass(frozen=True)
class Embedded:
    """One model, loaded and proved.

    Attributes:
        backend: of its plain graph, or of its studio, which mixes classes.
        batch: images in one forward pass at most.
        studio: which of the two.
    """

    model: ServedModel
    backend: Backend | StudioBackend
    batch: int
    studio: bool = False

    def images(
        self,
        mixtures: Sequence[Mixture],
        seeds: Sequence[int],
        truncation_psi: float,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> np.ndarray:
        """Make one image for each mixture and seed, uint8 [n, H, W, 3], in passes of `batch` rows.

        Args:
            mixtures: without a studio of one class each.
            progress: told after every pass how many images it made.

        Raises:
            BackendError: the engine failed.
            BadOutput: it made something that must not be shown.
        """
        parts = []
        for start in range(0, len(seeds), self.batch):
            rows = slice(start, start + self.batch)
            output = self.run(self.inputs(mixtures[rows], seeds[rows], truncation_psi))
            self._require_showable(output, mixtures[rows], seeds[rows], truncation_psi)
            parts.append(output.images)
            progress(len(output.images))
        return np.concatenate(parts)

    def inputs(
        self, mixtures: Sequence[Mixture], seeds: Sequence[int], truncation_psi: float
    ) -> Batch | StudioBatch:
        """Return the inputs of one pass; the latents are those that the service makes of these seeds."""
        z = latents_from_seeds(seeds, self.model.artefact.manifest.z_shape)
        psi = np.full(len(seeds), truncation_psi, dtype=np.float32)
        if self.studio:
            return StudioBatch(z, *slots(mixtures), psi)
        class_ids = [class_id for mixture in mixtures for class_id in mixture]
        return Batch(z, np.array(class_ids, dtype=np.int64), psi)

    def run(self, batch: Batch | StudioBatch) -> Output:
        """Make one forward pass of what `inputs` returned."""
        backend: Any = self.backend
        output: Output = backend.run(batch)
        return output

    def _require_showable(
        self, output: Output, mixtures: Sequence[Mixture], seeds: Sequence[int], psi: float
    ) -> None:
        """Hold every row to what the service holds it to."""
        for row, (mixture, seed) in enumerate(zip(mixtures, seeds, strict=True)):
            alone = Output(output.images[row : row + 1], output.ok[row : row + 1])
            asked = ImageRequest(self.model, mixture, seed_range(seed, 1), psi)
            require_showable(alone, asked)


@contextmanager
def embedded(artefact: Artefact, settings: Settings, studio: bool = False) -> Iterator[Embedded]:
    """Open a model as the settings say, with `max_batch` as the size of a pass, and prove it by its golden images.

    Args:
        studio: open the graph that mixes classes, instead of the plain one.

    Raises:
        InvalidInput: the settings' backend computes elsewhere; or `no_studio`, there is none.
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
    model = ServedModel(artefact, classes_of(artefact))
    batch = min(settings.max_batch, artefact.manifest.max_batch)
    plain = open_backend(settings.backend, artefact, options)
    with closing(plain):
        if not studio:
            check_golden(plain)
            yield Embedded(model, plain, batch)
            return
        with closing(plain.open_studio()) as mixing:
            check_studio_golden(mixing)
            yield Embedded(model, mixing, batch, studio=True)


def classes_of(artefact: Artefact) -> Classes:
    """Return the classes of a model, which its manifest names."""
    return Classes(artefact.manifest.model, artefact.manifest.class_names)


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
