"""What every engine promises to the service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from cat_serve.contract import BATCH, Batch, Output, Precision, outputs
from cat_serve.errors import BackendError
from cat_serve.manifest import Artefact, Determinism

Provider = Literal["cpu", "cuda", "tensorrt"]


@dataclass(frozen=True)
class EngineOptions:
    """How to open an engine; each engine reads what concerns it.

    Attributes:
        provider: where ONNX Runtime computes.
        threads: threads of one forward pass; 0 leaves it to the engine.
        checkpoints: folder of the checkpoints, `<model>.safetensors`; only the torch engine needs it.
        precision: which of the artefact's graphs; one that is not there is an error, never replaced.
    """

    provider: Provider = "cpu"
    threads: int = 0
    checkpoints: Path | None = None
    precision: Precision = "fp32"


class Backend(Protocol):
    """One loaded model on one engine.

    Attributes:
        name: the name it is chosen by (`onnxruntime`, `torch`, ...).
        artefact: the model it serves.
        precision: of what it runs; decides how far its golden images may be off.
        determinism: what is promised of it: `bytes` only where that was measured for this very file and device.
    """

    name: str
    artefact: Artefact
    precision: Precision
    determinism: Determinism

    def run(self, batch: Batch) -> Output:
        """Make images in one forward pass; blocking and safe to call from several threads.

        Raises:
            BackendError: the engine failed, or answered with something else than the contract says.
        """

    def close(self) -> None:
        """Free the engine; `run` must not be called again."""


def checked(images: object, ok: object, batch: Batch, artefact: Artefact) -> Output:
    """Return an engine's answer to `batch` if it has the contract's shapes and dtypes.

    Raises:
        BackendError: it has not.
    """
    answer = Output(np.asarray(images), np.asarray(ok))
    for spec, got in zip(
        outputs(artefact.manifest.image_size), (answer.images, answer.ok), strict=True
    ):
        shape = tuple(len(batch) if size == BATCH else size for size in spec.shape)
        if got.shape != shape or got.dtype != spec.dtype:
            raise BackendError(
                f"The engine of {artefact.manifest.model} answered {spec.name} as "
                f"{got.dtype} {list(got.shape)}, not {spec.dtype} {list(shape)}."
            )
    return answer
