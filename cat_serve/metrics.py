"""Prometheus metrics of one service, in a registry of its own.

Every label has a bounded set of values: models and routes that exist, status classes, codes of the closed list, names of
API keys, and the position of a Triton server in `triton_url` (never its address).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cat_serve import __version__

if TYPE_CHECKING:
    from cat_serve.service import Service

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
REASONS = ("queue_full", "deadline_queue", "deadline_idle")
RELOADED = ("replaced", "failed")  # what a reload may do with a model that is served
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0)
PREFIX = "cat_serve_"
IN_PROCESS = "embedded"


@runtime_checkable
class SeveralServers(Protocol):
    """An engine that is computed by servers elsewhere."""

    def servers_ready(self) -> list[bool]:
        """Return for each server, in the order of the settings, whether it gets calls."""


class Metrics:
    """What is counted; see docs/serving.md for what each name means."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._queue = self._histogram("queue_seconds", "Time of a request in which none of its images was in the engine", ["model"])  # fmt: skip
        self._generate = self._histogram("generate_seconds", "Time of a request in which one of its images was in the engine", ["model"])  # fmt: skip
        self._encode = self._histogram("encode_seconds", "Time of a request in the encoder", ["model"])  # fmt: skip
        self._request = self._histogram("request_seconds", "Time of a request from its arrival to the end of its answer", ["route"])  # fmt: skip
        self._batch = self._histogram("batch_images", "Images in one forward pass", ["model"], IMAGES)  # fmt: skip
        self._images = self._counter("images", "Images that were made and may be shown", ["model"])
        self._bad = self._counter("bad_outputs", "Images that were made and must not be shown", ["model"])  # fmt: skip
        self._requests = self._counter("requests", "Requests that were answered", ["route", "status"])  # fmt: skip
        self._problems = self._counter("rejected", "Requests that were answered with a problem", ["route", "code"])  # fmt: skip
        self._gone = self._counter("client_gone", "Requests whose client left before the answer", ["route"])  # fmt: skip
        self._key_images = self._counter("key_images", "Images that were made for an API key", ["key"])  # fmt: skip
        self._key_requests = self._counter("key_requests", "Requests with an API key", ["key", "status"])  # fmt: skip
        self._key_problems = self._counter("key_rejected", "Requests with an API key that were answered with a problem", ["key", "code"])  # fmt: skip
        self._refused = self._counter("refused", "Requests that a queue did not take", ["model", "reason"])  # fmt: skip
        self._ratio = self._histogram("prediction_ratio", "Time in queue and engine of requests with a deadline, divided by what was predicted", ["model"], RATIOS)  # fmt: skip
        self._reloads = self._counter("reloads", "Models that a reload found changed", ["model", "outcome"])  # fmt: skip
        self.workers = Gauge(
            PREFIX + "workers", "HTTP processes that serve", registry=self.registry
        )
        self.workers.set(1)
        ProcessCollector(registry=self.registry)

    def watch(self, service: Service) -> None:
        """Show the service's present state, too, and every model from the start."""
        self.registry.register(_State(service))
        for name in service.models:
            self.served(name)

    def served(self, model: str) -> None:
        """Show a model before anything of it is counted: Prometheus sees no rise to a first sample of 1."""
        for metric in (self._queue, self._generate, self._encode, self._batch, self._ratio):
            metric.labels(model)
        self._images.labels(model)
        self._bad.labels(model)
        for reason in REASONS:
            self._refused.labels(model, reason)
        for outcome in RELOADED:
            self._reloads.labels(model, outcome)

    def made(
        self, model: str, images: int, queue_ms: float, generate_ms: float, key: str | None
    ) -> None:
        """Count the images of a request that the engine has made."""
        self._child(self._queue, model).observe(queue_ms / 1e3)
        self._child(self._generate, model).observe(generate_ms / 1e3)
        self._child(self._images, model).inc(images)
        if key is not None:
            self._child(self._key_images, key).inc(images)

    def passed(self, model: str, images: int) -> None:
        """Count a forward pass."""
        self._child(self._batch, model).observe(images)

    def refused(self, model: str, reason: str) -> None:
        """Count a request that a queue did not take; the reasons are those of `cat_serve.admission`."""
        self._child(self._refused, model, reason).inc()

    def predicted(self, model: str, ratio: float) -> None:
        """Count a request that took `ratio` times as long as was predicted."""
        self._child(self._ratio, model).observe(ratio)

    def reloaded(self, model: str, outcome: str) -> None:
        """Count a model that a reload found changed: `replaced`, `added` or `failed`."""
        self._child(self._reloads, model, outcome).inc()

    def bad(self, model: str, images: int) -> None:
        """Count images that must not be shown."""
        self._child(self._bad, model).inc(images)

    def encoded(self, model: str, encode_ms: float) -> None:
        """Count an encoded answer."""
        self._child(self._encode, model).observe(encode_ms / 1e3)

    def gone(self, route: str) -> None:
        """Count a client that left; that is nobody's error."""
        self._child(self._gone, route).inc()

    def answered(
        self, route: str, status: int, seconds: float, code: str | None, key: str | None
    ) -> None:
        """Count an answer.

        Args:
            route: as it is declared, with its placeholders; `other` if there is none.
            code: of the problem, if it is one.
        """
        status_class = f"{status // 100}xx"
        self._child(self._requests, route, status_class).inc()
        self._child(self._request, route).observe(seconds)
        if code is not None:
            self._child(self._problems, route, code).inc()
        if key is not None:
            self._child(self._key_requests, key, status_class).inc()
            if code is not None:
                self._child(self._key_problems, key, code).inc()

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the form that the scraper accepts, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _child(self, metric: Any, *labels: str) -> Any:
        """Return the child of a metric for these labels; `labels` of the library takes ten times as long."""
        key = (metric, *labels)
        if (child := self._children.get(key)) is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _histogram(
        self, name: str, what: str, labels: list[str], buckets: Iterable[float] = SECONDS
    ) -> Histogram:
        return Histogram(PREFIX + name, what, labels, buckets=tuple(buckets), registry=self.registry)  # fmt: skip

    def _counter(self, name: str, what: str, labels: list[str]) -> Counter:
        return Counter(PREFIX + name, what, labels, registry=self.registry)


class _State(Collector):
    """What a service knows of itself at the moment of the scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing to compare names with: all are declared here

    def collect(self) -> Iterator[Metric]:
        service = self._service
        queued = _gauge("queued_images", "Images that wait and are in no forward pass", ["model"])
        passes = _gauge("passes_in_flight", "Forward passes under way", ["model"])
        for name in service.models:
            queued.add_metric([name], service.queued_images(name))
            passes.add_metric([name], service.passes_in_flight(name))
        ready = _gauge("ready", "Whether /readyz says 200", [])
        ready.add_metric([], float(service.phase == "ready"))
        build = _gauge("build_info", "The package that runs", ["version"])
        build.add_metric([__version__], 1)
        yield from (queued, passes, ready, build, self._tasks(), *self._engines(), *self._pace())

    def _pace(self) -> Iterator[Metric]:
        image = _gauge("pace_image_seconds", "What one image adds to a forward pass (a of a * images + b)", ["model", "graph"])  # fmt: skip
        whole = _gauge("pace_pass_seconds", "What a forward pass takes besides (b)", ["model", "graph"])  # fmt: skip
        wait = _gauge("predicted_seconds", "Until an image would be made that was asked for now", ["model", "graph"])  # fmt: skip
        for labels, line, predicted_s in self._service.pace():
            image.add_metric(labels, line.per_image_s)
            whole.add_metric(labels, line.per_pass_s)
            wait.add_metric(labels, predicted_s)
        yield from (image, whole, wait)

    def _tasks(self) -> Metric:
        """Return how many asyncio tasks there are; none where the scrape is not answered by an event loop."""
        tasks = _gauge("tasks", "asyncio tasks that have not ended", [])
        with contextlib.suppress(RuntimeError):
            tasks.add_metric([], len(asyncio.all_tasks()))
        return tasks

    def _engines(self) -> Iterator[Metric]:
        ready = _gauge("engine_ready", "Whether an engine gets work", ["model", "endpoint"])
        info = _gauge("model_info", "A model that is served",
                      ["model", "version", "backend", "precision", "determinism"])  # fmt: skip
        for name, model in self._service.models.items():
            if (engine := self._service.engine(name)) is None:
                continue
            version = model.artefact.version
            facts = [name, version, engine.name, engine.precision, engine.determinism]
            info.add_metric(facts, 1)
            if isinstance(engine, SeveralServers):
                for position, is_ready in enumerate(engine.servers_ready()):
                    ready.add_metric([name, str(position)], float(is_ready))
            else:
                ready.add_metric([name, IN_PROCESS], float(engine.why_unavailable() is None))
        yield ready
        yield info


def _gauge(name: str, what: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, what, labels=labels)
