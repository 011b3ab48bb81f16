"""Workers' services and the engine process's hub over a real socket, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve import errors
from cat_serve.backends.fake import FakeBackend
from cat_serve.contract import Batch, StudioBatch
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import (
    BackendError,
    BackendUnavailable,
    BadOutput,
    BudgetExceeded,
    CatServeError,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
)
from cat_serve.keys import KeyRing, read_keys
from cat_serve.observation import CURRENT, Observation
from cat_serve.opening import limits_of, service_of
from cat_serve.paths import Key, PathRequest
from cat_serve.phase import Phase
from cat_serve.service import Service
from cat_serve.settings import Settings
from cat_serve.tracing import Tracing
from cat_serve.wanted import ImageRequest, ServedModel, StudioRequest, Wanted
from cat_serve.workers import failures, remote
from cat_serve.workers.failures import EngineProcessFailure
from cat_serve.workers.hub import Hub
from cat_serve.workers.remote import RemoteService

pytestmark = pytest.mark.anyio

WAIT_S = 20
PSI = 0.75
KEYS = "bob=bobs-own-secret-key"


@dataclass
class Together:
    """One engine process's parts, and workers' services that are connected to them."""

    path: Path
    service: Service
    settings: Settings
    keys: KeyRing | None
    engines: list[FakeBackend]
    tracing: Tracing | None = None
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def engine(self) -> FakeBackend:
        return self.engines[0]

    @asynccontextmanager
    async def hub(self) -> AsyncIterator[None]:
        """Serve workers while the block runs; afterwards nobody listens any more."""
        self.path.unlink(missing_ok=True)
        hub = Hub(self.service, self.keys, self.tracing, self.told.append)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            running = asyncio.create_task(hub.run(listener))
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait([running])

    @asynccontextmanager
    async def worker(self, known: Any = None) -> AsyncIterator[RemoteService]:
        service = RemoteService(self.path, limits_of(self.settings), known)
        async with asyncio.timeout(WAIT_S):
            await service.start()
            if known is None:
                await until(lambda: service.phase is Phase.READY)
        try:
            yield service
        finally:
            await service.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def engine_parts(
    repository: Path, tmp_path: Path, keys: str = "", tracing: Tracing | None = None, **values: Any
) -> AsyncIterator[Together]:
    engines: list[FakeBackend] = []

    def opened(artefact: Any) -> FakeBackend:
        engines.append(FakeBackend(artefact))
        return engines[-1]

    settings = Settings(model_repository=repository, **values)
    service = service_of(settings, open_engine=opened)
    ring = read_keys(None, keys, settings.key_images_per_minute) if keys else None
    await service.start()
    try:
        yield Together(tmp_path / "s", service, settings, ring, engines, tracing)
    finally:
        await service.close()


@pytest.fixture
def together(repository: Path, add_model: Any, tmp_path: Path) -> Any:
    add_model(stages=3)

    def start(**values: Any) -> Any:
        return engine_parts(repository, tmp_path, **values)

    return start


def asked(model: ServedModel, class_id: int = 1, n: int = 1, seed: int = 5) -> ImageRequest:
    return ImageRequest.of(model, class_id, seed, PSI, n)


def requests_of(model: ServedModel) -> list[Wanted]:
    """Return one request of each kind."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1, 6)).astype(np.float32)
    rows = StudioBatch.of(Batch(z, np.array([2]), np.array([PSI], np.float32)))
    mixture = {0: 0.1, 3: 0.9}
    return [
        asked(model, n=3),
        ImageRequest(model, {2: 1.0}, [7, 2**32 - 1, 0], 0.0),
        ImageRequest(model, mixture, range(4, 6), 1.0),
        ImageRequest(model, {1: 1.0}, range(1), 1.0, stage=2),
        ImageRequest(model, {1: 1.0}, (), 1.0, z=z[0]),
        PathRequest(model, (Key(mixture, 1), Key({1: 1.0}, 9)), 5, "slerp", True, PSI),
        StudioRequest(model, rows, stages=True),
    ]


async def test_every_kind_of_request_gets_what_one_process_makes(together: Any) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        there = requests_of(parts.service.model(None))
        for here, direct in zip(requests_of(worker.model(None)), there, strict=True):
            got, expected = await worker.generate(here), await parts.service.generate(direct)
            assert np.array_equal(got.pixels, expected.pixels)
            assert got.pixels.dtype == np.uint8
            assert got.determinism == expected.determinism == "bytes"
            assert (got.stage_pixels is None) == (expected.stage_pixels is None)
            if got.stage_pixels is not None:
                assert np.array_equal(got.stage_pixels, expected.stage_pixels)


async def test_a_worker_tells_the_same_of_the_models(together: Any) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        service, name = parts.service, "toy"
        assert worker.default == service.default == name
        assert worker.model(None).artefact == service.model(None).artefact
        assert worker.model(None).classes.names == service.model(None).classes.names
        assert (worker.engine(name).name, worker.engine(name).precision) == ("fake", "fp32")
        assert worker.stages(name) == service.stages(name) == 3
        assert worker.determinism(name, studio=True) == "bytes"
        assert worker.limits == service.limits
        with pytest.raises(errors.UnknownModel) as caught:
            worker.model("other")
        assert caught.value.details["accepted"] == [name]


async def test_queue_is_bounded_over_all_workers(together: Any, steps: Any) -> None:
    limits = {"concurrency": 1, "max_queued_images": 4, "max_images_per_request": 4}
    async with (
        together(**limits) as parts,
        parts.hub(),
        parts.worker() as a,
        parts.worker() as b,
    ):
        parts.engine.before = steps
        model = a.model(None)
        first = asyncio.create_task(a.generate(asked(model)))
        await steps.until_entered(1)
        flood = [
            asyncio.create_task((a, b)[i % 2].generate(asked(model, seed=i))) for i in range(12)
        ]
        await until(lambda: sum(task.done() for task in flood) == 8)
        steps.allow(100)
        done = await asyncio.gather(first, *flood, return_exceptions=True)
        refused = [each for each in done if isinstance(each, Overloaded)]
        assert len(refused) == 8
        assert {each.details["limit"] for each in refused} == {4}
        assert all(each.details["retry_after_s"] >= 1 for each in refused)
        assert sum(not isinstance(each, Exception) for each in done) == 5


async def test_budget_is_counted_over_all_workers(together: Any) -> None:
    async with (
        together(keys=KEYS, key_images_per_minute=3) as parts,
        parts.hub(),
        parts.worker() as a,
        parts.worker() as b,
    ):
        CURRENT.set(Observation(caller=read_keys(None, KEYS).named("bob")))
        await a.generate(asked(a.model(None), n=2))
        with pytest.raises(BudgetExceeded) as caught:
            await b.generate(asked(b.model(None), n=2))
        assert caught.value.details["got"] == 2
        await b.generate(asked(b.model(None)))
        counted = parts.service.metrics.registry.get_sample_value
        assert counted("cat_serve_key_images_total", {"key": "bob"}) == 3


async def test_key_that_only_a_worker_knows_is_an_error(together: Any) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        CURRENT.set(Observation(caller=read_keys(None, KEYS).named("bob")))
        with pytest.raises(BackendError, match="bob"):
            await worker.generate(asked(worker.model(None)))


@pytest.mark.parametrize("leave", ["request", "worker"])
async def test_who_leaves_frees_the_queue(together: Any, steps: Any, leave: str) -> None:
    async with (
        together(concurrency=1) as parts,
        parts.hub(),
        parts.worker() as a,
        parts.worker() as b,
    ):
        parts.engine.before = steps
        kept = asyncio.create_task(a.generate(asked(a.model(None))))
        await steps.until_entered(1)
        gone = asyncio.create_task(b.generate(asked(b.model(None), class_id=0, n=6)))
        await until(lambda: parts.service.queued_images("toy") == 6)
        if leave == "request":
            gone.cancel()
        else:
            await b.close()
        await until(lambda: parts.service.queued_images("toy") == 0)
        steps.allow(10)
        await kept
        with contextlib.suppress(asyncio.CancelledError, BackendError):
            await gone
        made = [batch.class_id.tolist() for batch in parts.engine.batches[2:]]
        assert made == [[1]]


async def test_what_is_left_of_a_deadline_travels(together: Any, steps: Any) -> None:
    async with together(concurrency=1) as parts, parts.hub(), parts.worker() as worker:
        parts.engine.before = steps
        kept = asyncio.create_task(worker.generate(asked(worker.model(None))))
        await steps.until_entered(1)
        late = Deadline(Deadline.after(100).at_s, 60_000)  # it came a minute ago
        with pytest.raises(DeadlineExceeded) as caught:
            await worker.generate(asked(worker.model(None)), late)
        assert caught.value.details == {"stage": "queue", "deadline_ms": 60_000}
        assert parts.service.queued_images("toy") == 0
        steps.allow(10)
        await kept


async def test_engine_process_that_does_not_answer_costs_no_more_than_the_deadline(
    together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:

        async def never(*_: Any) -> None:
            await asyncio.sleep(WAIT_S)

        monkeypatch.setattr(parts.service, "generate", never)
        async with asyncio.timeout(WAIT_S / 4):
            with pytest.raises(DeadlineExceeded):
                await worker.generate(asked(worker.model(None)), Deadline.after(50))


async def test_silence_is_seen_at_readyz(together: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        monkeypatch.setattr(remote, "SILENCE_S", 0.05)
        await until(lambda: worker.phase is Phase.UNAVAILABLE)
        assert "does not answer" in worker.reason
        monkeypatch.setattr(remote, "SILENCE_S", 60)
        assert worker.phase is Phase.READY


async def test_engine_process_that_dies_fails_what_it_had_and_nothing_after_it_is_back(
    together: Any, steps: Any
) -> None:
    async with together(concurrency=1) as parts:
        async with parts.hub(), contextlib.AsyncExitStack() as stack:
            worker = await stack.enter_async_context(parts.worker())
            parts.engine.before = steps
            under_way = asyncio.create_task(worker.generate(asked(worker.model(None))))
            await steps.until_entered(1)
            outliving = stack.pop_all()
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BackendError, match="broke off"):
                await under_way
        steps.allow(100)
        assert worker.phase is Phase.UNAVAILABLE
        with pytest.raises(BackendUnavailable) as caught:
            await worker.generate(asked(worker.model(None)))
        assert caught.value.details["retry_after_s"] == 1
        worker.metrics.answered("/generate", 503, 0.1, "backend_unavailable", None)
        async with outliving, parts.hub():
            await until(lambda: worker.phase is Phase.READY)
            assert (await worker.generate(asked(worker.model(None)))).pixels.shape[0] == 1
            text, _ = await worker.scrape("text/plain")
            line = b'cat_serve_rejected_total{code="backend_unavailable",route="/generate"} 1.0'
            assert line in text


async def test_worker_that_starts_while_the_engine_process_is_away_knows_the_models(
    together: Any,
) -> None:
    async with together() as parts:
        async with parts.hub(), parts.worker():
            pass
        async with parts.worker(known=parts.told[-1]) as worker:
            assert worker.model(None).name == "toy"
            assert worker.phase is Phase.UNAVAILABLE
            with pytest.raises(BackendUnavailable):
                await worker.generate(asked(worker.model(None)))


async def test_counts_of_all_workers_are_in_one_scrape(together: Any) -> None:
    async with (
        together() as parts,
        parts.hub(),
        parts.worker() as a,
        parts.worker() as b,
    ):
        for worker in (a, b, b):
            await worker.generate(asked(worker.model(None)))
            worker.metrics.answered("/generate", 200, 0.25, None, "bob")
            worker.metrics.encoded("toy", 2.0)
            worker.metrics.gone("/generate")
        await b.scrape("")  # what was told before has arrived
        text, media_type = await a.scrape("application/openmetrics-text; version=1.0.0")
        assert media_type.startswith("application/openmetrics-text")
        for line in (
            'cat_serve_requests_total{route="/generate",status="2xx"} 3.0',
            'cat_serve_key_requests_total{key="bob",status="2xx"} 3.0',
            'cat_serve_encode_seconds_count{model="toy"} 3.0',
            'cat_serve_client_gone_total{route="/generate"} 3.0',
            'cat_serve_images_total{model="toy"} 3.0',
            "cat_serve_workers 2.0",
        ):
            assert line in text.decode().splitlines()


async def test_new_version_is_known_at_once_and_nothing_fails_meanwhile(
    together: Any, add_model: Any
) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        old, before = worker.model(None), worker.revision
        new = add_model(version="2", stages=3, source={"run": "two"})
        seen: set[str] = set()

        async def ask() -> None:
            while worker.model(None) is old or len(seen) < 2:
                model = worker.model(None)
                await worker.generate(asked(model))
                seen.add(model.artefact.version)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        reloads = await worker.reload()
        await worker.generate(asked(old))  # resolved before the news came
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*asking)
        assert [(one.outcome, one.version) for one in reloads] == [("replaced", new.version)]
        assert seen == {old.artefact.version, new.version}
        assert worker.revision == before + 1


async def test_version_that_nobody_serves_is_refused(together: Any) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        model = worker.model(None)
        artefact = type(model.artefact)(model.artefact.folder, model.artefact.manifest, "0" * 12)
        with pytest.raises(BackendUnavailable, match="replaced"):
            await worker.generate(asked(ServedModel(artefact, model.classes)))


async def test_stopping_and_lost_engines_are_seen_by_workers(
    together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        engine = parts.service.engine("toy")
        monkeypatch.setattr(engine, "why_unavailable", lambda: "it is being mended")
        await until(lambda: worker.reason == "it is being mended")
        assert worker.phase is Phase.UNAVAILABLE
        monkeypatch.undo()
        await until(lambda: worker.phase is Phase.READY)
        parts.service.stop_accepting()
        await until(lambda: worker.phase is Phase.STOPPING)


async def test_bad_output_names_its_seeds_and_the_unexpected_only_its_kind(
    together: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        parts.engine.after = lambda answer: type(answer)(answer.images, answer.ok & False)
        with pytest.raises(BadOutput) as bad:
            await worker.generate(asked(worker.model(None), n=2))
        assert bad.value.details["seeds"] == [5, 6]

        def broken(_: object) -> None:
            raise OSError("/a/path/of/this/machine")

        parts.engine.before = broken
        CURRENT.set(Observation(request_id="abc"))
        with pytest.raises(EngineProcessFailure) as failed:
            await worker.generate(asked(worker.model(None)))
        assert str(failed.value) == "OSError"
        assert "/a/path/of/this/machine" in caplog.text
        assert "request abc failed" in caplog.text


async def test_spans_of_the_engine_process_lie_below_the_workers(together: Any) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    async with together(tracing=tracing) as parts, parts.hub(), parts.worker() as worker:
        CURRENT.set(observed := Observation(request_id="abc"))
        observed.trace = trace = tracing.begin("POST", {})
        await worker.generate(asked(worker.model(None)))
        trace.end("POST", "/generate", 200, observed)
        CURRENT.set(None)
        await worker.generate(asked(worker.model(None)))  # nobody traces this one
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"queue", "generate", "POST /generate"}
    above = spans["POST /generate"].context.span_id
    assert {spans[name].parent.span_id for name in ("queue", "generate")} == {above}
    assert observed.generate_ms is not None


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CatServeError)]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_stay_what_they_are(kind: type[CatServeError]) -> None:
    error = kind("It is wrong.", hint="mend it", got=[1, "a"], retry_after_s=None)
    again = failures.read(failures.written(error, None))
    assert type(again) is kind
    assert isinstance(again, CatServeError)
    assert str(again) == str(error)
    assert (again.code, again.details) == (error.code, error.details)


def test_code_of_an_input_error_and_odd_details_travel() -> None:
    error = InvalidInput("no", code="bad_seed", got=Path("x"), accepted={1: "one"})
    again = failures.read(failures.written(error, None))
    assert isinstance(again, InvalidInput)
    assert (again.code, again.hint) == ("bad_seed", None)
    assert again.details == {"got": "x", "accepted": {"1": "one"}}


async def test_never_is_a_deadline_without_end(together: Any) -> None:
    async with together() as parts, parts.hub(), parts.worker() as worker:
        assert (await worker.generate(asked(worker.model(None)), NEVER)).queue_ms >= 0
