"""The service without HTTP: models that were proved before they answer, and one image at a time.

Nothing here imports an engine's package; engines are opened by name in `cat_serve.backends`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from cat_serve.backends.base import Backend
from cat_serve.classes import Classes
from cat_serve.contract import Batch, Output
from cat_serve.errors import (
    BackendUnavailable,
    BadOutput,
    CatServeError,
    Overloaded,
    UnknownModel,
)
from cat_serve.golden import check_golden
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1

BackendFactory = Callable[[Artefact], Backend]


class Phase(StrEnum):
    """Where the service stands; it takes requests when `ready` and, to the end, while `stopping`."""

    STARTING = "starting"
    READY = "ready"
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
    """One image: everything that its bytes depend on."""

    model: ServedModel
    class_id: int
    seed: int
    truncation_psi: float

    def batch(self) -> Batch:
        """Return the request as inputs of one row."""
        return Batch(
            latents_from_seeds([self.seed], self.model.artefact.manifest.z_shape),
            np.array([self.class_id], dtype=np.int64),
            np.array([self.truncation_psi], dtype=np.float32),
        )


@dataclass(frozen=True)
class GeneratedImage:
    """uint8 [H, W, 3], and where the time went."""

    pixels: np.ndarray
    queue_ms: float
    generate_ms: float


class Gate:
    """Let a few in at once, let some wait, and turn the rest away immediately."""

    def __init__(self, places: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(places)
        self._limit = places + waiting
        self.inside = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            Overloaded: the waiting room is full.
        """
        if self.inside >= self._limit:
            raise Overloaded(
                f"{self.inside} requests are being served or waiting already.",
                hint=f"try again in {RETRY_AFTER_S} s",
                limit=self._limit,
                retry_after_s=RETRY_AFTER_S,
            )
        self.inside += 1
        try:
            async with self._free:
                yield
        finally:
            self.inside -= 1


class Service:
    """Owns the engines from loading to closing.

    Args:
        artefacts: the models to serve, by name.
        default: the model of requests that name none.
        open_backend: loads one model on its engine; blocking.
        concurrency: forward passes at the same time.
        max_waiting: requests that may wait for one.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefact],
        default: str,
        open_backend: BackendFactory,
        concurrency: int = 2,
        max_waiting: int = 64,
    ) -> None:
        self.default = default
        self.models = {
            name: ServedModel(artefact, Classes(name, artefact.manifest.class_names))
            for name, artefact in artefacts.items()
        }
        self.phase = Phase.STARTING
        self.reason = "the models are being loaded"
        self.failure: Exception | None = None
        self.settled = asyncio.Event()
        self._open_backend = open_backend
        self._backends: dict[str, Backend] = {}
        self._gate = Gate(concurrency, max_waiting)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")

    async def start(self) -> None:
        """Load, warm up and prove every model; afterwards the service is ready, or failed with a reason."""
        loop = asyncio.get_running_loop()
        try:
            for name, model in self.models.items():
                await loop.run_in_executor(self._threads, self._load, name, model.artefact)
        except CatServeError as error:
            self._fail(error, error.message)
        except Exception as error:
            logger.exception("start failed")
            self._fail(error, "an unexpected error; the log has it")
        else:
            if self.phase is Phase.STARTING:
                self.phase, self.reason = Phase.READY, ""
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

    async def generate(self, request: ImageRequest) -> GeneratedImage:
        """Make one image, off the event loop.

        Raises:
            BackendUnavailable: not ready, or failed.
            Overloaded: too many requests wait already.
            BackendError: the engine failed.
            BadOutput: it made something that must not be shown.
        """
        asked = time.perf_counter()
        backend = self._backend(request.model.name)
        async with self._gate.place():
            started = time.perf_counter()
            loop = asyncio.get_running_loop()
            output = await loop.run_in_executor(self._threads, _run, backend, request)
            done = time.perf_counter()
        require_showable(output, request)
        return GeneratedImage(output.images[0], 1e3 * (started - asked), 1e3 * (done - started))

    def stop_accepting(self) -> None:
        """Report not ready from now on; requests that still come are served until the server closes."""
        if self.phase in (Phase.STARTING, Phase.READY):
            self.phase, self.reason = Phase.STOPPING, "the server is shutting down"

    async def close(self) -> None:
        """Wait for the forward passes in flight, then free the engines."""
        self.stop_accepting()
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        while self._backends:
            self._backends.popitem()[1].close()

    def _fail(self, error: Exception, reason: str) -> None:
        self.phase, self.reason, self.failure = Phase.FAILED, reason.rstrip("."), error
        logger.info("not ready: %s", self.reason)

    def _load(self, name: str, artefact: Artefact) -> None:
        started = time.perf_counter()
        backend = self._open_backend(artefact)
        self._backends[name] = backend
        check_golden(backend)
        spent_ms = 1e3 * (time.perf_counter() - started)
        logger.info("loaded %s@%s in %.0f ms", name, artefact.version, spent_ms)

    def _backend(self, name: str) -> Backend:
        if self.phase in (Phase.STARTING, Phase.FAILED) or name not in self._backends:
            raise BackendUnavailable(
                f"The service is not ready: {self.reason}.",
                hint="GET /readyz says when it is",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._backends[name]


def _run(backend: Backend, request: ImageRequest) -> Output:
    return backend.run(request.batch())


def require_showable(output: Output, request: ImageRequest) -> None:
    """Refuse an image that the graph flagged, or that has one colour only.

    Raises:
        BadOutput: naming the seed.
    """
    image = output.images[0]
    constant = bool((image == image[0, 0]).all())
    if bool(output.ok[0]) and not constant:
        return
    what = "an image of a single colour" if constant else "an image that it marks as not ok"
    raise BadOutput(
        f"The model {request.model.name} made {what} for class {request.class_id}, "
        f"seed {request.seed}, truncation_psi {request.truncation_psi}.",
        hint="try another seed; if all fail, the artefact or the device is damaged",
        model=request.model.label,
        class_id=request.class_id,
        seeds=[request.seed],
        truncation_psi=request.truncation_psi,
    )
