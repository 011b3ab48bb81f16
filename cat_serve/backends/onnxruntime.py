"""Run a model inside this process with ONNX Runtime."""

from __future__ import annotations

from cat_serve.backends.base import (
    EngineOptions,
    Provider,
    checked,
    checked_studio,
    no_studio,
)
from cat_serve.backends.onnxruntime_session import open_fitting, run_session
from cat_serve.contract import (
    OUTPUT_NAMES,
    STUDIO_OUTPUT_NAMES,
    Batch,
    Output,
    Precision,
    StudioBatch,
    StudioOutput,
    inputs,
    outputs,
    studio_inputs,
    studio_outputs,
)
from cat_serve.manifest import STUDIO_NAME, Artefact, Determinism, FileRecord


class OnnxRuntimeBackend:
    """One session; ONNX Runtime lets several threads run it at once."""

    name = "onnxruntime"

    def __init__(
        self,
        artefact: Artefact,
        provider: Provider = "cpu",
        threads: int = 0,
        precision: Precision = "fp32",
    ) -> None:
        self.artefact = artefact
        self.precision = precision
        self._where: tuple[Provider, int] = (provider, threads)
        path, graph = artefact.graph(precision)
        self.determinism = promised(graph, provider)
        manifest = artefact.manifest
        self._session = open_fitting(
            path,
            manifest,
            provider,
            threads,
            inputs(manifest.z_shape),
            outputs(manifest.image_size),
        )

    def run(self, batch: Batch) -> Output:
        """See `Backend.run`."""
        images, ok = run_session(self._session, OUTPUT_NAMES, batch.feeds(), self.artefact)
        return checked(images, ok, batch, self.artefact)

    @property
    def studio_determinism(self) -> Determinism | None:
        graph = self.artefact.manifest.files.get(STUDIO_NAME)
        return None if graph is None else promised(graph, self._where[0])

    def open_studio(self) -> OnnxRuntimeStudio:
        """See `Backend.open_studio`."""
        if self.studio_determinism is None:
            manifest = self.artefact.manifest
            raise no_studio(manifest.model, manifest.why_no_studio)
        return OnnxRuntimeStudio(self.artefact, *self._where)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


class OnnxRuntimeStudio:
    """See `StudioBackend`; the studio graph has a precision of its own, which is what it was exported in."""

    name = "onnxruntime"

    def __init__(self, artefact: Artefact, provider: Provider = "cpu", threads: int = 0) -> None:
        self.artefact = artefact
        manifest = artefact.manifest
        graph = manifest.files[STUDIO_NAME]
        self.precision: Precision = graph.precision or "fp32"
        self.determinism = promised(graph, provider)
        self._session = open_fitting(
            artefact.folder / STUDIO_NAME, manifest, provider, threads,
            studio_inputs(manifest.z_shape), studio_outputs(manifest.image_size, manifest.stages),
        )  # fmt: skip

    def run(self, batch: StudioBatch) -> StudioOutput:
        """See `StudioBackend.run`."""
        answer = run_session(self._session, STUDIO_OUTPUT_NAMES, batch.feeds(), self.artefact)
        images, ok, stage_images = answer
        return checked_studio(images, ok, stage_images, batch, self.artefact)

    def close(self) -> None:
        """See `StudioBackend.close`."""
        self._session = None


def open_backend(artefact: Artefact, options: EngineOptions) -> OnnxRuntimeBackend:
    """Open `artefact` as the registry does."""
    return OnnxRuntimeBackend(artefact, options.provider, options.threads, options.precision)


def promised(graph: FileRecord, provider: Provider) -> Determinism:
    """Return what is promised of a graph; what the export measured, it measured on the CPU."""
    return (graph.determinism if provider == "cpu" else None) or "latent"
