"""A deterministic stand-in for an engine, which can be told to be slow, to fail or to lie."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from cat_serve.backends.base import EngineOptions, checked, checked_studio, no_studio
from cat_serve.contract import Batch, Output, Precision, StudioBatch, StudioOutput
from cat_serve.manifest import Artefact, Determinism


class FakeBackend:
    """Images by arithmetic: each row is a pure function of its own inputs, and psi 0 forgets z.

    Attributes:
        before: called with every batch before it is run; sleep, wait or raise here.
        after: called with every answer before it is checked; return another one to lie.
        batches: every batch that was run, in order.
        studios: every studio that was opened.
    """

    name = "fake"
    precision: Precision = "fp32"
    determinism: Determinism = "bytes"

    def __init__(
        self,
        artefact: Artefact,
        before: Callable[[Batch], None] = lambda batch: None,
        after: Callable[[Output], Output] = lambda answer: answer,
    ) -> None:
        self.artefact = artefact
        self.before = before
        self.after = after
        self.batches: list[Batch] = []
        self.studios: list[FakeStudio] = []
        self.closed = False
        self._lock = threading.Lock()

    def run(self, batch: Batch) -> Output:
        """See `Backend.run`."""
        with self._lock:
            self.batches.append(batch)
        self.before(batch)
        answer = self.after(self._answer(batch))
        return checked(answer.images, answer.ok, batch, self.artefact)

    @property
    def studio_determinism(self) -> Determinism | None:
        return self.determinism if self.artefact.manifest.stages else None

    def open_studio(self) -> FakeStudio:
        """See `Backend.open_studio`."""
        if self.studio_determinism is None:
            manifest = self.artefact.manifest
            raise no_studio(manifest.model, manifest.why_no_studio)
        self.studios.append(FakeStudio(self.artefact))
        return self.studios[-1]

    def close(self) -> None:
        """See `Backend.close`."""
        self.closed = True

    def _answer(self, batch: Batch) -> Output:
        manifest = self.artefact.manifest
        in_range = (batch.class_id >= 0) & (batch.class_id < manifest.num_classes)
        psi_ok = (batch.truncation_psi >= 0) & (batch.truncation_psi <= 1)
        z = batch.z.reshape(len(batch), -1)
        ok = in_range & psi_ok & np.isfinite(z).all(axis=1)
        psi = np.where(psi_ok, batch.truncation_psi, 1).astype(np.float32)
        w = np.where(np.isfinite(z), z, 0)[:, :3] * psi[:, None]
        height, width = manifest.image_size
        ramp = np.add.outer(np.arange(height), np.arange(width))[None, :, :, None]
        class_id = np.clip(batch.class_id, 0, manifest.num_classes - 1)[:, None, None, None]
        shade = np.rint(w * 64).astype(np.int64)[:, None, None, :]
        return Output(((ramp * (class_id + 1) + shade) % 256).astype(np.uint8), ok)


class FakeStudio:
    """Mixtures by arithmetic: shades of the plain images of the classes, added up; a stage is darker than the next.

    Attributes: see `FakeBackend`.
    """

    name = "fake"
    precision: Precision = "fp32"
    determinism: Determinism = "bytes"

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.before: Callable[[StudioBatch], None] = lambda batch: None
        self.after: Callable[[StudioOutput], StudioOutput] = lambda answer: answer
        self.batches: list[StudioBatch] = []
        self.closed = False
        self._plain = FakeBackend(artefact)

    def run(self, batch: StudioBatch) -> StudioOutput:
        """See `StudioBackend.run`."""
        self.batches.append(batch)
        self.before(batch)
        mixed, ok = np.zeros(0), np.abs(batch.class_weight.sum(axis=1) - 1) <= 1e-3
        for slot in range(batch.class_id.shape[1]):
            one = self._plain.run(Batch(batch.z, batch.class_id[:, slot], batch.truncation_psi))
            weight = batch.class_weight[:, slot]
            part = one.images * weight[:, None, None, None]
            mixed = part if slot == 0 else mixed + part
            ok &= (one.ok | (weight == 0)) & (weight >= 0)
        images = np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)
        stages = self.artefact.manifest.stages
        shown = [images // (stages - stage) for stage in range(stages)]
        answer = self.after(StudioOutput(images, ok, np.stack(shown, axis=1)))
        return checked_studio(answer.images, answer.ok, answer.stage_images, batch, self.artefact)

    def close(self) -> None:
        """See `StudioBackend.close`."""
        self.closed = True


def open_backend(artefact: Artefact, options: EngineOptions) -> FakeBackend:
    """Open `artefact` as the registry does."""
    return FakeBackend(artefact)
