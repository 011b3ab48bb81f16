"""The service without HTTP: models that were proved before they answer, and requests for their images.

Nothing here imports an engine's package; engines are opened by name in `cat_serve.backends`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from cat_serve.backends.base import Engine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.classes import Classes
from cat_serve.contract import StudioOutput
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendUnavailable, BadOutput, CatServeError
from cat_serve.manifest import Artefact, Determinism
from cat_serve.metrics import Metrics
from cat_serve.observation import current
from cat_serve.showable import require_showable
from cat_serve.studio import Studio
from cat_serve.surface import served
from cat_serve.wanted import ServedModel, Wanted

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1

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
class GeneratedImages:
    """uint8 [n, H, W, 3], what is promised of its bytes, and where the time went; see `Made`.

    Attributes:
        stage_pixels: uint8 [n, K, H, W, 3], every stage's images, of a StudioRequest that wants them.
    """

    pixels: np.ndarray
    determinism: Determinism
    queue_ms: float
    generate_ms: float
    stage_pixels: np.ndarray | None = None


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
        self._studios: dict[str, Studio] = {}
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
        return served(self.models, self.default, name)

    async def generate(self, request: Wanted, deadline: Deadline = NEVER) -> GeneratedImages:
        """Make the images, off the event loop. Cancelled or too late, it takes back those that were not started.

        What needs the studio graph waits in a queue of its own, under the same limits.

        Raises:
            InvalidInput: `no_studio`, it needs the studio graph, and there is none.
            BackendUnavailable: not ready, or failed.
            Overloaded: too many images wait already, or the caller's budget does not allow them.
            DeadlineExceeded: they were not made in time.
            BackendError: the engine failed.
            BadOutput: it made something that must not be shown.
        """
        name, studio = request.model.name, request.needs_studio
        with self._observed(request) as batcher:
            asked_s = time.perf_counter()
            if studio:
                opening = self._studios[name].batcher()
                batcher = await deadline.hold(opening, lambda: "queue")
            opening_ms = 1e3 * (time.perf_counter() - asked_s)
            made = await batcher.submit(request, deadline, request.kept)
            made = replace(made, queue_ms=made.queue_ms + opening_ms)
            require_showable(made.output, request)
        self._count(request, made)
        output = made.output
        return GeneratedImages(
            output.images,
            self.determinism(name, studio),
            made.queue_ms,
            made.generate_ms,
            output.stage_images if isinstance(output, StudioOutput) else None,
        )

    def determinism(self, name: str, studio: bool = False) -> Determinism:
        """Return what is promised of a model's bytes, or of its studio's; `latent` before its engine is loaded."""
        if (engine := self.engine(name)) is None:
            return "latent"
        return (engine.studio_determinism or "latent") if studio else engine.determinism

    def stages(self, name: str) -> int:
        """Return how many stages of a model can be had; 0: neither stages nor mixtures."""
        engine = self.engine(name)
        if engine is not None and engine.studio_determinism is None:
            return 0
        return self.models[name].artefact.manifest.stages

    def engine(self, name: str) -> Engine | None:
        """Return the engine of a model; None before it is loaded."""
        return self._engines.get(name)

    def queued_images(self, name: str) -> int:
        """Return how many images of a model wait and are in no forward pass."""
        if name not in self._batchers:
            return 0
        return self._batchers[name].waiting + self._studios[name].waiting

    def passes_in_flight(self, name: str) -> int:
        """Return how many forward passes of a model are under way."""
        if name not in self._batchers:
            return 0
        return self._batchers[name].passes_in_flight + self._studios[name].passes_in_flight

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the form that the scraper accepts, and its media type."""
        return self.metrics.exposed(accept)

    def stop_accepting(self) -> None:
        """Report not ready from now on; requests that still come are served until the server closes."""
        if self._phase in (Phase.STARTING, Phase.READY):
            self._phase, self._reason = Phase.STOPPING, "the server is shutting down"

    async def close(self) -> None:
        """Make what waits, then free the engines."""
        self.stop_accepting()
        for batcher in self._batchers.values():
            await batcher.close()
        for studio in self._studios.values():
            await studio.close()
        while self._engines:
            await self._engines.popitem()[1].close()

    @contextmanager
    def _observed(self, request: Wanted) -> Iterator[Batcher]:
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
            self.metrics.bad(name, error.details["images"])
            raise

    def _count(self, request: Wanted, made: Made) -> None:
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
        self._studios[name] = Studio(name, engine.open_studio, self._queue_for)
        self._batchers[name] = self._queue_for(engine)
        spent_ms = 1e3 * (time.perf_counter() - started)
        logger.info("opened %s@%s in %.0f ms", name, artefact.version, spent_ms)

    def _queue_for(self, engine: Engine) -> Batcher:
        return Batcher(engine, self._slots, self.limits, self.metrics)

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
