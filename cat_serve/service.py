"""The service without HTTP: models that were proved before they answer, and requests for their images.

Nothing here imports an engine's package; engines are opened by name in `cat_serve.backends`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from cat_serve.backends.base import Engine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.classes import Classes
from cat_serve.contract import Batch, Output
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendUnavailable, BadOutput, CatServeError, UnknownModel
from cat_serve.latents import latents_from_seeds, seed_range
from cat_serve.manifest import Artefact, Determinism
from cat_serve.metrics import Metrics
from cat_serve.observation import current

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
MAX_SHOWN_SEEDS = 8

EngineFactory = Callable[[Artefact], Awaitable[Engine]]


class Phase(StrEnum):
    """Where the service stands; it takes requests when `ready` and, to the end, while `stopping`.

    `unavailable`: it started well, but the engine of a model is out of reach; it comes back by itself.
    """

    STARTING = "starting"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    STOPPING = "stopping"


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


@dataclass(frozen=True)
class ImageRequest:
    """Images of one class: everything that their bytes depend on. Image i has seed + i."""

    model: ServedModel
    class_id: int
    seed: int
    truncation_psi: float
    n: int = 1

    def __len__(self) -> int:
        return self.n

    @property
    def seeds(self) -> range:
        return seed_range(self.seed, self.n)

    def batch(self, start: int, stop: int) -> Batch:
        """See `Rows.batch`."""
        rows = stop - start
        return Batch(
            latents_from_seeds(self.seeds[start:stop], self.model.artefact.manifest.z_shape),
            np.full(rows, self.class_id, dtype=np.int64),
            np.full(rows, self.truncation_psi, dtype=np.float32),
        )


@dataclass(frozen=True)
class GeneratedImages:
    """uint8 [n, H, W, 3], what is promised of its bytes, and where the time went; see `Made`."""

    pixels: np.ndarray
    determinism: Determinism
    queue_ms: float
    generate_ms: float


class Service:
    """Owns the engines from loading to closing.

    Args:
        artefacts: the models to serve, by name.
        default: the model of requests that name none.
        open_engine: opens a model on its engine and proves it.
        concurrency: forward passes at the same time, of all models together.
        limits: how large requests, passes and queues may be.
        metrics: where everything is counted.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefact],
        default: str,
        open_engine: EngineFactory,
        concurrency: int = 2,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.default = default
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.models = {
            name: ServedModel(artefact, Classes(name, artefact.manifest.class_names))
            for name, artefact in artefacts.items()
        }
        self._phase = Phase.STARTING
        self._reason = "the models are being loaded"
        self.failure: Exception | None = None
        self.settled = asyncio.Event()
        self._open_engine = open_engine
        self._engines: dict[str, Engine] = {}
        self._batchers: dict[str, Batcher] = {}
        self._slots = asyncio.Semaphore(concurrency)
        self.metrics.watch(self)

    @property
    def phase(self) -> Phase:
        return self._standing()[0]

    @property
    def reason(self) -> str:
        """Why the service is not ready."""
        return self._standing()[1]

    async def start(self) -> None:
        """Load, warm up and prove every model; afterwards the service is ready, or failed with a reason."""
        try:
            for name, model in self.models.items():
                await self._open(name, model.artefact)
        except CatServeError as error:
            self._fail(error, error.message)
        except Exception as error:
            logger.exception("start failed")
            self._fail(error, "an unexpected error; the log has it")
        else:
            if self._phase is Phase.STARTING:
                self._phase, self._reason = Phase.READY, ""
        finally:
            self.settled.set()

    def model(self, name: str | None) -> ServedModel:
        """Return the model called `name`, or the default one.

        Raises:
            UnknownModel: there is no such model.
        """
        if name is None:
            return self.models[self.default]
        if name not in self.models:
            names = sorted(self.models)
            raise UnknownModel(
                f"There is no model {name!r} here.",
                hint=f"models: {', '.join(names)}",
                got=name,
                accepted=names,
            )
        return self.models[name]

    async def generate(self, request: ImageRequest, deadline: Deadline = NEVER) -> GeneratedImages:
        """Make the images, off the event loop. Cancelled or too late, it takes back those that were not started.

        Raises:
            BackendUnavailable: not ready, or failed.
            Overloaded: too many images wait already, or the caller's budget does not allow them.
            DeadlineExceeded: they were not made in time.
            BackendError: the engine failed.
            BadOutput: it made something that must not be shown.
        """
        with self._observed(request) as batcher:
            made = await batcher.submit(request, deadline)
            require_showable(made.output, request)
        self._count(request, made)
        return GeneratedImages(
            made.output.images,
            self.determinism(request.model.name),
            made.queue_ms,
            made.generate_ms,
        )

    def determinism(self, name: str) -> Determinism:
        """Return what is promised of a model's bytes; no more than `latent` before its engine is loaded."""
        engine = self.engine(name)
        return engine.determinism if engine is not None else "latent"

    def engine(self, name: str) -> Engine | None:
        """Return the engine of a model; None before it is loaded."""
        return self._engines.get(name)

    def queued_images(self, name: str) -> int:
        """Return how many images of a model wait and are in no forward pass."""
        return self._batchers[name].waiting if name in self._batchers else 0

    def passes_in_flight(self, name: str) -> int:
        """Return how many forward passes of a model are under way."""
        return self._batchers[name].passes_in_flight if name in self._batchers else 0

    def stop_accepting(self) -> None:
        """Report not ready from now on; requests that still come are served until the server closes."""
        if self._phase in (Phase.STARTING, Phase.READY):
            self._phase, self._reason = Phase.STOPPING, "the server is shutting down"

    async def close(self) -> None:
        """Make what waits, then free the engines."""
        self.stop_accepting()
        for batcher in self._batchers.values():
            await batcher.close()
        while self._engines:
            await self._engines.popitem()[1].close()

    @contextmanager
    def _observed(self, request: ImageRequest) -> Iterator[Batcher]:
        """Note who asks for what, hold it to the caller's budget, and count images that must not be shown."""
        observed, name = current(), request.model.name
        observed.asked(request)
        batcher = self._batcher(name)
        try:
            if observed.caller is None:
                yield batcher
            else:
                with observed.caller.admitted(len(request), batcher.whole_seconds_for):
                    yield batcher
        except BadOutput as error:
            self.metrics.bad(name, len(error.details.get("seeds", ())))
            raise

    def _count(self, request: ImageRequest, made: Made) -> None:
        observed = current()
        observed.timed(made.queue_ms, made.generate_ms)
        key = observed.caller.name if observed.caller is not None else None
        self.metrics.made(request.model.name, len(request), made.queue_ms, made.generate_ms, key)

    def _standing(self) -> tuple[Phase, str]:
        if self._phase is Phase.READY:
            for engine in self._engines.values():
                if (reason := engine.why_unavailable()) is not None:
                    return Phase.UNAVAILABLE, reason
        return self._phase, self._reason

    def _fail(self, error: Exception, reason: str) -> None:
        self._phase, self._reason, self.failure = Phase.FAILED, reason.rstrip("."), error
        logger.info("not ready: %s", self._reason)

    async def _open(self, name: str, artefact: Artefact) -> None:
        started = time.perf_counter()
        engine = self._engines[name] = await self._open_engine(artefact)
        self._batchers[name] = Batcher(engine, self._slots, self.limits, self.metrics)
        spent_ms = 1e3 * (time.perf_counter() - started)
        logger.info("opened %s@%s in %.0f ms", name, artefact.version, spent_ms)

    def _batcher(self, name: str) -> Batcher:
        phase, reason = self._phase, self._reason
        if name in self._engines and (unavailable := self._engines[name].why_unavailable()):
            phase, reason = Phase.UNAVAILABLE, unavailable
        if phase not in (Phase.READY, Phase.STOPPING) or name not in self._batchers:
            raise BackendUnavailable(
                f"The service is not ready: {reason}.",
                hint="GET /readyz says when it is",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._batchers[name]


def require_showable(output: Output, request: ImageRequest) -> None:
    """Refuse images that the graph flagged, or that have one colour only.

    Raises:
        BadOutput: naming the seeds.
    """
    constant = (output.images == output.images[:, :1, :1]).all(axis=(1, 2, 3))
    bad = np.flatnonzero(constant | ~output.ok)
    if not len(bad):
        return
    seeds = [request.seeds[row] for row in bad]
    what = "of a single colour" if constant[bad].all() else "marked as not ok"
    shown = ", ".join(map(str, seeds[:MAX_SHOWN_SEEDS])) + (", ..." * (len(bad) > MAX_SHOWN_SEEDS))
    raise BadOutput(
        f"The model {request.model.name} made images {what} for class {request.class_id}, "
        f"truncation_psi {request.truncation_psi}, seed {shown}.",
        hint="try other seeds; if all fail, the artefact or the device is damaged",
        model=request.model.label,
        class_id=request.class_id,
        seeds=seeds,
        truncation_psi=request.truncation_psi,
    )
