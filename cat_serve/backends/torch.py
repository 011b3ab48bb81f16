"""Run the checkpoint itself in torch: for debugging, and as the reference that exports are held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cat_serve.backends.base import EngineOptions, checked, checked_studio, no_studio
from cat_serve.contract import Batch, Output, Precision, StudioBatch, StudioOutput
from cat_serve.errors import ArtefactError, BackendError, InvalidInput, MissingDependency
from cat_serve.files import sha256_of
from cat_serve.manifest import Artefact, Determinism

CHECKPOINT_HASH = "checkpoint_sha256"


class TorchBackend:
    """The fused module on the CPU, in float32."""

    name = "torch"
    precision: Precision = "fp32"
    determinism: Determinism = "latent"  # nobody measures it at export

    def __init__(self, artefact: Artefact, checkpoint: Path, threads: int = 0) -> None:
        self.artefact = artefact
        self._checkpoint = checkpoint
        require_checkpoint(artefact, checkpoint)
        try:
            import torch

            from cat_serve.model.checkpoint import load_checkpoint
            from cat_serve.model.fused import FusedModel
        except ImportError as error:
            raise MissingDependency(
                f"The torch backend needs {error.name}.", hint="pip install 'cat-serve[torch]'"
            ) from error
        if threads:
            torch.set_num_threads(threads)
        self._model: Any = FusedModel.from_checkpoint(load_checkpoint(checkpoint))

    def run(self, batch: Batch) -> Output:
        """See `Backend.run`."""
        try:
            output = self._model.run(batch)
        except RuntimeError as error:
            raise BackendError(f"torch failed on {self.artefact.manifest.model}.") from error
        return checked(output.images, output.ok, batch, self.artefact)

    @property
    def studio_determinism(self) -> Determinism | None:
        return self.determinism if self.artefact.manifest.stages else None

    def open_studio(self) -> TorchStudio:
        """See `Backend.open_studio`."""
        if self.studio_determinism is None:
            manifest = self.artefact.manifest
            raise no_studio(manifest.model, manifest.why_no_studio)
        return TorchStudio(self.artefact, self._checkpoint)

    def close(self) -> None:
        """See `Backend.close`."""
        self._model = None


class TorchStudio:
    """See `StudioBackend`: the studio form of the checkpoint, on the CPU, in float32."""

    name = "torch"
    precision: Precision = "fp32"
    determinism: Determinism = "latent"

    def __init__(self, artefact: Artefact, checkpoint: Path) -> None:
        from cat_serve.model.checkpoint import load_checkpoint
        from cat_serve.model.fused import StudioModel

        self.artefact = artefact
        self._model: Any = StudioModel.from_checkpoint(load_checkpoint(checkpoint))

    def run(self, batch: StudioBatch) -> StudioOutput:
        """See `StudioBackend.run`."""
        try:
            output = self._model.run(batch)
        except RuntimeError as error:
            raise BackendError(f"torch failed on {self.artefact.manifest.model}.") from error
        return checked_studio(output.images, output.ok, output.stage_images, batch, self.artefact)

    def close(self) -> None:
        """See `StudioBackend.close`."""
        self._model = None


def open_backend(artefact: Artefact, options: EngineOptions) -> TorchBackend:
    """Open `artefact` as the registry does.

    Raises:
        InvalidInput: another precision than float32 is wanted.
        ArtefactError: the checkpoint is not there, or another one.
    """
    if options.precision != "fp32":
        raise InvalidInput(
            f"The torch backend computes in fp32, not in {options.precision}.",
            hint="use the onnxruntime backend for fp16, or set CAT_SERVE_PRECISION (--precision) to fp32",
        )
    if options.checkpoints is None:
        raise ArtefactError(
            "The torch backend runs checkpoints, and nothing says where they are.",
            hint="set CAT_SERVE_CHECKPOINTS (or --checkpoints) to the folder of <model>.safetensors",
        )
    path = options.checkpoints / f"{artefact.manifest.model}.safetensors"
    return TorchBackend(artefact, path, options.threads)


def require_checkpoint(artefact: Artefact, checkpoint: Path) -> None:
    """Refuse a checkpoint that is not the one `artefact` was exported from.

    Raises:
        ArtefactError: there is none, or its hash is another.
    """
    if not checkpoint.is_file():
        raise ArtefactError(
            f"There is no checkpoint {checkpoint.name} of the model {artefact.manifest.model!r}.",
            hint="set CAT_SERVE_CHECKPOINTS (or --checkpoints) to the folder that holds it",
        )
    wanted = artefact.manifest.source.get(CHECKPOINT_HASH)
    if (got := sha256_of(checkpoint)) != wanted:
        raise ArtefactError(
            f"{checkpoint.name} is not the checkpoint that {artefact.manifest.model!r} was exported "
            f"from (sha256 {got[:12]}, the manifest says {str(wanted)[:12]}).",
            hint="export the checkpoint again: python -m export.onnx --help",
        )
