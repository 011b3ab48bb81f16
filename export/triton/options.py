"""How the models of a repository are served by Triton: typed options, with what each of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from cat_serve.contract import Precision
from cat_serve.errors import InvalidInput

Engine = Literal["python", "onnxruntime_onnx", "tensorrt_plan"]
Device = Literal["cpu", "gpu"]

ENGINES: tuple[Engine, ...] = get_args(Engine)

# Of the warm-up on a CPU, which has no kernels of its own for each size: more would only delay the start.
MAX_CPU_WARM_UP = 8


@dataclass(frozen=True)
class QueuePolicy:
    """Who may wait in front of a model; whoever may not is refused at once.

    Attributes:
        max_size: requests that wait; 0 for no limit.
        timeout_ms: the longest wait; 0 for no limit. It does not cover the execution.
        allow_override: whether a request may ask for a shorter one.
    """

    max_size: int = 256
    timeout_ms: int = 30_000
    allow_override: bool = True


@dataclass(frozen=True)
class Batching:
    """How requests become batches.

    Attributes:
        max_batch: rows of one forward pass; None: what the model was exported for.
        preferred: sizes at which a batch starts without waiting for more; none: as many rows as there are.
        delay_us: microseconds that a batch which has no preferred size waits for more.
    """

    max_batch: int | None = None
    preferred: tuple[int, ...] = ()
    delay_us: int = 0
    queue: QueuePolicy = field(default_factory=QueuePolicy)

    def largest(self, exported_for: int) -> int:
        """Return the largest batch of a model that was exported for so many rows.

        Raises:
            InvalidInput: the batch, or a preferred one, is larger than that.
        """
        if self.max_batch is not None and self.max_batch > exported_for:
            raise InvalidInput(
                f"A batch of {self.max_batch} is more than the {exported_for} rows that the model was "
                "exported for.",
                hint="export it again with a larger --max-batch, or serve it with a smaller one",
            )
        largest = self.max_batch or exported_for
        _require_sizes(self.preferred, largest, "--preferred-batch")
        return largest


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Attributes:
        instances: on each device.
        gpus: which ones; none: every GPU of the machine.
    """

    device: Device = "cpu"
    instances: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Versions:
    """Which version folders are served: the newest so many, or these, or (both empty) all."""

    latest: int | None = 1
    numbers: tuple[int, ...] = ()

    def choose(self, there: Sequence[int]) -> list[int]:
        """Return those of the numbers that are served, the newest last.

        Raises:
            InvalidInput: one that is wanted is not there.
        """
        if missing := set(self.numbers) - set(there):
            raise InvalidInput(
                f"There is no version {', '.join(map(str, sorted(missing)))}.",
                hint=f"versions there: {', '.join(map(str, sorted(there)))}",
            )
        newest_last = sorted(self.numbers or there)
        return newest_last if self.latest is None else newest_last[-self.latest :]


@dataclass(frozen=True)
class EngineOptions:
    """How the engine models are served.

    Attributes:
        precision: which graph; for plans, which graph they were built from.
        threads: of one forward pass on a CPU; 0 leaves it to ONNX Runtime.
        plans: file names of TensorRT plans by compute capability, such as "8.9"; none: one plan for all.
        warm_up: batch sizes to run before the model is ready; None: the powers of two up to the largest batch, on
            a CPU up to 8.
    """

    engine: Engine = "python"
    precision: Precision = "fp32"
    batching: Batching = field(default_factory=Batching)
    placement: Placement = field(default_factory=Placement)
    versions: Versions = field(default_factory=Versions)
    threads: int = 0
    plans: Mapping[str, str] = field(default_factory=dict)
    warm_up: tuple[int, ...] | None = None

    def warm_up_sizes(self, max_batch: int) -> list[int]:
        """Return the batch sizes to warm up, ascending.

        Raises:
            InvalidInput: one is larger than a batch may be.
        """
        if self.warm_up is not None:
            _require_sizes(self.warm_up, max_batch, "--warm-up")
            return sorted(set(self.warm_up))
        powers = {1 << bit for bit in range(max_batch.bit_length())}
        if self.placement.device == "cpu":
            return sorted(size for size in powers if size <= MAX_CPU_WARM_UP)
        return sorted({*powers, *self.batching.preferred, max_batch})


@dataclass(frozen=True)
class FriendlyOptions:
    """How the model `cat` is served: its instances encode, and wait for engines.

    Attributes:
        versions: for each engine model, the version it is asked for.
    """

    default_model: str
    versions: Mapping[str, int]
    max_batch: int
    instances: int = 2
    queue: QueuePolicy = field(default_factory=QueuePolicy)


def _require_sizes(sizes: Sequence[int], largest: int, flag: str) -> None:
    for size in sizes:
        if not 1 <= size <= largest:
            raise InvalidInput(
                f"{flag} {size} is outside 1 to {largest}.",
                hint="--max-batch, or the limit that the model was exported with, is the largest batch",
            )
