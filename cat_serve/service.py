"""The service without HTTP: models that were proved before they answer, and requests for their images.

Nothing here imports an engine's package; engines are opened by name in `cat_serve.backends`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from cat_serve.backends.base import Engine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.classes import Classes
from cat_serve.contract import StudioOutput
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BadOutput, CatServeError
from cat_serve.loaded import EngineFactory, Loaded
from cat_serve.manifest import Artefact, Determinism
from cat_serve.metrics import Metrics
from cat_serve.observation import current
from cat_serve.pace import Line
from cat_serve.phase import Life, Phase, not_ready
from cat_serve.reloading import ModelReload, Newest, Reloading
from cat_serve.showable import require_showable
from cat_serve.slots import Slots
from cat_serve.surface import GeneratedImages, served
from cat_serve.versions import Versions
from cat_serve.wanted import ServedModel, Wanted

logger = logging.getLogger(__name__)


class Service:
    """Owns the engines from loading to closing.

    Args:
        artefacts: the models to serve, by name.
        default: the model of requests that name none.
        open_engine: opens a model on its engine and proves it.
        concurrency: forward passes at the same time, of all models together.
        limits: how large requests, passes and queues may be.
        metrics: where everything is counted.
        newest: what a reload finds in the repository: the folder of every model's newest version.
    """

    def __init__(
        self,
        artefacts: Mapping[str, Artefact],
        default: str,
        open_engine: EngineFactory,
        concurrency: int = 2,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        newest: Newest = dict,
    ) -> None:
        self.default = default
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.models = {name: _served(artefact) for name, artefact in artefacts.items()}
        self._life = Life(self._why_unavailable)
        self._open_engine = open_engine
        self._slots = Slots(concurrency)
        self._versions = Versions()
        self._reloading = Reloading(self._versions, newest, self._load, self._switch)
        self._one_reload = asyncio.Lock()
        self.metrics.watch(self)

    @property
    def phase(self) -> Phase:
        return self._life.standing()[0]

    @property
    def reason(self) -> str:
        """Why the service is not ready."""
        return self._life.standing()[1]

    @property
    def failure(self) -> Exception | None:
        """What the start failed with."""
        return self._life.failure

    @property
    def settled(self) -> asyncio.Event:
        """Set when the start has ended, well or not."""
        return self._life.settled

    async def start(self) -> None:
        """Load, warm up and prove every model; afterwards the service is ready, or failed with a reason."""
        try:
            for model in list(self.models.values()):
                self._versions.switch(await self._load(model.artefact))
        except CatServeError as error:
            self._life.failed(error, error.message)
        except Exception as error:
            logger.exception("start failed")
            self._life.failed(error, "an unexpected error; the log has it")
        else:
            self._life.ready()
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
        studio = request.needs_studio
        with self._observed(request) as loaded:
            batcher, asked_s = loaded.batcher, time.perf_counter()
            if studio:
                batcher = await deadline.hold(loaded.studio.batcher(), lambda: "queue")
            opening_ms = 1e3 * (time.perf_counter() - asked_s)
            made = await batcher.submit(request, deadline, request.kept)
            made = replace(made, queue_ms=made.queue_ms + opening_ms)
            require_showable(made.output, request)
        self._count(request, made)
        output = made.output
        return GeneratedImages(
            output.images,
            loaded.determinism(studio),
            made.queue_ms,
            made.generate_ms,
            output.stage_images if isinstance(output, StudioOutput) else None,
        )

    def determinism(self, name: str, studio: bool = False) -> Determinism:
        """Return what is promised of a model's bytes, or of its studio's; `latent` before its engine is loaded."""
        loaded = self._versions.present(name)
        return "latent" if loaded is None else loaded.determinism(studio)

    def stages(self, name: str) -> int:
        """Return how many stages of a model can be had; 0: neither stages nor mixtures."""
        engine = self.engine(name)
        if engine is not None and engine.studio_determinism is None:
            return 0
        return self.models[name].artefact.manifest.stages

    def engine(self, name: str) -> Engine | None:
        """Return the engine of a model; None before it is loaded."""
        loaded = self._versions.present(name)
        return None if loaded is None else loaded.engine

    def queued_images(self, name: str) -> int:
        """Return how many images of a model wait and are in no forward pass."""
        return sum(loaded.queued_images for loaded in self._versions.all_of(name))

    def passes_in_flight(self, name: str) -> int:
        """Return how many forward passes of a model are under way."""
        return sum(loaded.passes_in_flight for loaded in self._versions.all_of(name))

    def pace(self) -> Iterator[tuple[list[str], Line, float]]:
        """Yield model and graph, how long its passes take, and in how many seconds one more image would be made."""
        for loaded in self._versions.all_present():
            for graph, line, predicted_s in loaded.pace():
                yield [loaded.model.name, graph], line, predicted_s

    @property
    def revision(self) -> int:
        """Grows whenever `models` has changed."""
        return self._versions.revision

    async def reload(self) -> list[ModelReload]:
        """Read the repository again and serve what is new in it, one model after another; one reload at a time.

        Raises:
            BackendUnavailable: the service is not running, or no more.
            ArtefactError: the repository cannot be read.
        """
        async with self._one_reload:
            await self.settled.wait()
            self._life.require(Phase.READY)
            reloads = await self._reloading.run()
        for one in reloads:
            if one.outcome in ("replaced", "added", "failed"):
                self.metrics.reloaded(one.model, one.outcome)
        return reloads

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the form that the scraper accepts, and its media type."""
        return self.metrics.exposed(accept)

    def stop_accepting(self) -> None:
        """Report not ready from now on; requests that still come are served until the server closes."""
        self._life.stopping()

    async def close(self) -> None:
        """Make what waits, then free the engines."""
        self.stop_accepting()
        async with self._one_reload:
            await self._versions.close()

    @contextmanager
    def _observed(self, request: Wanted) -> Iterator[Loaded]:
        """Note who asks for what, hold it to the caller's budget, and count images that must not be shown."""
        observed, name = current(), request.model.name
        observed.asked(request)
        loaded = self._loaded_for(request.model)
        try:
            with loaded.used():
                if observed.caller is None:
                    yield loaded
                else:
                    seconds_for = loaded.batcher.whole_seconds_for
                    with observed.caller.admitted(len(request), seconds_for):
                        yield loaded
        except BadOutput as error:
            self.metrics.bad(name, error.details["images"])
            raise

    def _count(self, request: Wanted, made: Made) -> None:
        observed = current()
        observed.timed(made.queue_ms, made.generate_ms)
        key = observed.caller.name if observed.caller is not None else None
        self.metrics.made(request.model.name, len(request), made.queue_ms, made.generate_ms, key)

    def _why_unavailable(self) -> str | None:
        reasons = (loaded.engine.why_unavailable() for loaded in self._versions.all_present())
        return next((reason for reason in reasons if reason is not None), None)

    async def _load(self, artefact: Artefact) -> Loaded:
        """Open a model on its engine and prove it."""
        started = time.perf_counter()
        model = _served(artefact)
        loaded = Loaded(model, await self._open_engine(artefact), self._queue_for)
        logger.info("opened %s in %.0f ms", model.label, 1e3 * (time.perf_counter() - started))
        return loaded

    def _switch(self, loaded: Loaded) -> None:
        """Serve a new version from now on."""
        self._versions.switch(loaded)
        models = {**self.models, loaded.model.name: loaded.model}
        self.models = dict(sorted(models.items()))  # as a start would list them
        self.metrics.served(loaded.model.name)

    def _queue_for(self, engine: Engine) -> Batcher:
        return Batcher(engine, self._slots, self.limits, self.metrics)

    def _loaded_for(self, model: ServedModel) -> Loaded:
        """Return what makes images of exactly this version of a model."""
        self._life.require(Phase.READY, Phase.STOPPING)
        if (loaded := self._versions.of(model)) is None:
            self._life.require(Phase.READY)  # at the end none is left
            raise not_ready(f"{model.label} was replaced by another version")
        if (reason := loaded.engine.why_unavailable()) is not None:
            raise not_ready(reason)
        return loaded


def _served(artefact: Artefact) -> ServedModel:
    manifest = artefact.manifest
    return ServedModel(artefact, Classes(manifest.model, manifest.class_names))
