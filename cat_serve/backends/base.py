"""What every engine promises: inside this process to whoever opens it, and in any place to the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cat_serve.contract import (
    BATCH,
    Batch,
    Output,
    Precision,
    StudioBatch,
    StudioOutput,
    TensorSpec,
    outputs,
    studio_outputs,
)
from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendError, InvalidInput
from cat_serve.manifest import Artefact, Determinism

Provider = Literal["cpu", "cuda", "tensorrt"]


Balance = Literal["least-loaded", "round-robin"]


@dataclass(frozen=True)
class TritonOptions:
    """How to ask Triton servers.

    Attributes:
        urls: `host:port` of their gRPC, all of the same model repository.
        balance: who gets a call: who has the fewest images, or each in turn.
        attempt_ms: an answer that takes longer is given up, and asked of another server.
        stall_ms: a server that does not even say that it is alive for so long is not.
        max_batch: images in one call; the model's own limit holds too.
    """

    urls: tuple[str, ...] = ()
    balance: Balance = "least-loaded"
    attempt_ms: float = 30_000.0
    stall_ms: float = 2_000.0
    max_batch: int = 16


@dataclass(frozen=True)
class EngineOptions:
    """How to open an engine; each engine reads what concerns it.

    Attributes:
        provider: where ONNX Runtime computes.
        threads: threads of one forward pass; 0 leaves it to the engine.
        checkpoints: folder of the checkpoints, `<model>.safetensors`; only the torch engine needs it.
        precision: which of the artefact's graphs; one that is not there is an error, never replaced.
        concurrency: forward passes at the same time, for engines inside this process.
        triton: see `TritonOptions`.
    """

    provider: Provider = "cpu"
    threads: int = 0
    checkpoints: Path | None = None
    precision: Precision = "fp32"
    concurrency: int = 2
    triton: TritonOptions = TritonOptions()


class Backend(Protocol):
    """One loaded model on an engine inside this process.

    Attributes:
        name: the name it is chosen by (`onnxruntime`, `torch`, ...).
        artefact: the model it serves.
        precision: of what it runs; decides how far its golden images may be off.
        determinism: what is promised of it: `bytes` only where that was measured for this very file and device.
        studio_determinism: the same of its studio; None if it has none.
    """

    name: str
    artefact: Artefact
    precision: Precision
    determinism: Determinism

    @property
    def studio_determinism(self) -> Determinism | None: ...

    def run(self, batch: Batch) -> Output:
        """Make images in one forward pass; blocking and safe to call from several threads.

        Raises:
            BackendError: the engine failed, or answered with something else than the contract says.
        """

    def open_studio(self) -> StudioBackend:
        """Load the studio form of the same model; blocking.

        Raises:
            InvalidInput: `no_studio`, there is none.
        """

    def close(self) -> None:
        """Free the engine; `run` must not be called again."""


class StudioBackend(Protocol):
    """The studio form of a model, which takes mixtures and returns every stage; see `Backend`."""

    name: str
    artefact: Artefact
    precision: Precision
    determinism: Determinism

    def run(self, batch: StudioBatch) -> StudioOutput:
        """See `Backend.run`."""

    def close(self) -> None:
        """See `Backend.close`."""


class Engine(Protocol):
    """One model as the service asks for it, wherever it is computed.

    Attributes:
        name, artefact, precision, determinism: see `Backend`.
        has_queue: whether it queues and batches by itself. If so, the rows of a request are sent to it as calls of their
            own, and a call that nobody waits for any more is cancelled; if not, rows of several requests share a pass,
            and a pass that has begun is never broken off.
    """

    name: str
    artefact: Artefact
    precision: Precision
    has_queue: bool

    @property
    def determinism(self) -> Determinism: ...

    @property
    def studio_determinism(self) -> Determinism | None:
        """What is promised of its studio; None if it has none."""

    async def open_studio(self) -> Engine:
        """Open the studio form of the same model as an engine of its own, and prove it; takes a while.

        Raises:
            InvalidInput: `no_studio`, there is none.
            BadOutput: it does not make the golden images.
        """

    def why_unavailable(self) -> str | None:
        """Return why nothing can be computed now, in words for everybody; None if it can."""

    async def run(self, make: Callable[[], Any], deadline: Deadline) -> Output:
        """Make images in one forward pass; several may run at once.

        Args:
            make: returns the inputs, a Batch, or of a studio a StudioBatch; called outside of the event loop. What it raises comes out as it is.
            deadline: when the answer is of no use any more; an engine that cannot stop may ignore it.

        Raises:
            BackendError: the engine failed, or answered with something else than the contract says.
            DeadlineExceeded: it was not done in time.
            Overloaded: the engine's own queue is full.
        """

    async def close(self) -> None:
        """Let what runs come to its end, and free the engine; `run` must not be called again."""


def no_studio(model: str, reason: str) -> InvalidInput:
    """Return the error of a request that needs the studio where there is none."""
    return InvalidInput(
        f"Mixtures and stages of {model} cannot be had here: {reason}.",
        code="no_studio",
        hint="ask for one class, and leave out stage",
        model=model,
    )


def checked(images: object, ok: object, batch: Batch, artefact: Artefact) -> Output:
    """Return an engine's answer to `batch` if it has the contract's shapes and dtypes.

    Raises:
        BackendError: it has not.
    """
    answer = Output(np.asarray(images), np.asarray(ok))
    specs = outputs(artefact.manifest.image_size)
    _require(specs, (answer.images, answer.ok), len(batch), artefact)
    return answer


def checked_studio(
    images: object, ok: object, stage_images: object, batch: StudioBatch, artefact: Artefact
) -> StudioOutput:
    """Return a studio's answer to `batch` if it has the contract's shapes and dtypes.

    Raises:
        BackendError: it has not.
    """
    answer = StudioOutput(np.asarray(images), np.asarray(ok), np.asarray(stage_images))
    specs = studio_outputs(artefact.manifest.image_size, artefact.manifest.stages)
    _require(specs, (answer.images, answer.ok, answer.stage_images), len(batch), artefact)
    return answer


def _require(
    specs: Sequence[TensorSpec], answer: Sequence[np.ndarray], rows: int, artefact: Artefact
) -> None:
    for spec, got in zip(specs, answer, strict=True):
        shape = tuple(rows if size == BATCH else size for size in spec.shape)
        if got.shape != shape or got.dtype != spec.dtype:
            raise BackendError(
                f"The engine of {artefact.manifest.model} answered {spec.name} as "
                f"{got.dtype} {list(got.shape)}, not {spec.dtype} {list(shape)}."
            )
