"""What a queue does with its prediction: early refusals that are right, and heal where they are wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.local import LocalEngine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.contract import Batch
from cat_serve.deadlines import Deadline
from cat_serve.errors import BudgetExceeded, NeverInTime, Overloaded
from cat_serve.keys import Caller
from cat_serve.manifest import Artefact
from cat_serve.slots import Slots

PASS_S = 0.08
IMAGE_S = 0.02


@dataclass(frozen=True)
class Wish:
    n: int = 1
    class_id: int = 0

    def __len__(self) -> int:
        return self.n

    def batch(self, start: int, stop: int) -> Batch:
        count = stop - start
        z = np.zeros((count, 6), np.float32)
        return Batch(z, np.full(count, self.class_id), np.ones(count, np.float32))


@dataclass
class Slow:
    """A batcher on an engine whose passes take PASS_S, and IMAGE_S for every image."""

    batcher: Batcher
    engine: FakeBackend

    def ask(self, wish: Wish, deadline_ms: float = 60_000) -> asyncio.Task[Made]:
        return asyncio.create_task(self.batcher.submit(wish, Deadline.after(deadline_ms)))

    async def learn(self) -> None:
        for n in (1, 4, 2, 4):
            await self.ask(Wish(n))


def pass_s(images: int) -> float:
    return PASS_S + IMAGE_S * images


@asynccontextmanager
async def slow(artefact: Artefact, concurrency: int = 1) -> AsyncIterator[Slow]:
    engine = FakeBackend(artefact, before=lambda batch: time.sleep(pass_s(len(batch))))
    local = LocalEngine(engine, concurrency)
    batcher = Batcher(local, Slots(concurrency), Limits(max_batch=4))
    yield Slow(batcher, engine)
    await batcher.close()
    await local.close()


@pytest.fixture
def artefact(add_model: Callable[..., Artefact]) -> Artefact:
    return add_model(max_batch=8)


@pytest.mark.anyio
async def test_deadline_just_under_the_prediction_is_refused_and_one_above_is_kept(
    artefact: Artefact,
) -> None:
    async with slow(artefact) as at:
        await at.learn()
        running = at.ask(Wish(4))
        waiting = [at.ask(Wish(4)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert at.batcher.waiting == 12
        predicted_s = at.batcher.forecast.request_s(4)
        assert predicted_s is not None
        # the pass under way, the three requests before, and its own: turns are shared, so all end together
        assert predicted_s == pytest.approx(5 * pass_s(4), rel=0.15)
        passes = len(at.engine.batches)
        began_s = time.perf_counter()
        with pytest.raises(Overloaded) as told:
            await at.ask(Wish(4, class_id=3), 1e3 * predicted_s - 60)
        assert time.perf_counter() - began_s < PASS_S / 2
        details = told.value.details
        assert details["predicted_ms"] == pytest.approx(1e3 * predicted_s, rel=0.1)
        assert (details["waiting"], details["retry_after_s"]) == (12, 1)
        kept = at.ask(Wish(4, class_id=1), 1e3 * predicted_s + 150)
        await asyncio.gather(running, *waiting, kept)
        assert not any(3 in batch.class_id for batch in at.engine.batches[passes:])


@pytest.mark.anyio
async def test_small_request_is_not_predicted_to_wait_for_a_large_one(artefact: Artefact) -> None:
    async with slow(artefact) as at:
        await at.learn()
        large = at.ask(Wish(40))
        await asyncio.sleep(0.01)
        forecast = at.batcher.forecast
        small_s, large_s = forecast.request_s(1), forecast.request_s(36)
        assert small_s == pytest.approx(2 * pass_s(4), rel=0.15)  # the one under way, and the next
        assert large_s == pytest.approx(19 * pass_s(4), rel=0.15)
        assert small_s is not None
        began_s = time.perf_counter()
        await at.ask(Wish(1), 1e3 * small_s + 100)
        assert time.perf_counter() - began_s == pytest.approx(small_s, rel=0.25)
        large.cancel()


@pytest.mark.anyio
async def test_prediction_with_passes_side_by_side_comes_true(artefact: Artefact) -> None:
    """The engine's passes take turns at one lock, as those of a machine that is busy do."""
    import threading

    async with slow(artefact, concurrency=2) as at:
        lock = threading.Lock()

        def share(batch: Batch) -> None:
            for _ in range(10):
                with lock:
                    time.sleep(pass_s(len(batch)) / 10)

        at.engine.before = share
        await at.learn()
        asked = [at.ask(Wish(4)) for _ in range(6)]
        await asyncio.sleep(0)
        began_s = time.perf_counter()
        predicted_s = at.batcher.forecast.drained_s()
        await asyncio.gather(*asked)
        assert predicted_s is not None
        assert time.perf_counter() - began_s == pytest.approx(6 * pass_s(4), rel=0.25)
        assert predicted_s == pytest.approx(6 * pass_s(4), rel=0.25)


@pytest.mark.anyio
async def test_mistaken_prediction_heals(artefact: Artefact) -> None:
    async with slow(artefact) as at:
        at.engine.before = lambda batch: time.sleep(0.6)
        await at.ask(Wish(1))
        at.engine.before = lambda batch: time.sleep(0.01)
        # nobody else comes whose passes would correct it
        refused = []
        for _ in range(30):
            (answer,) = await asyncio.gather(at.ask(Wish(1), 200), return_exceptions=True)
            if isinstance(answer, BaseException):
                refused.append(answer)
        assert 1 <= len(refused) <= 12
        for error in refused:
            assert isinstance(error, NeverInTime)
            assert error.details["predicted_ms"] > 200
        assert at.batcher.forecast.idle_s(1) == pytest.approx(0.01, abs=0.02)


def test_what_is_refused_at_the_door_is_not_charged_to_the_key() -> None:
    caller = Caller("bob", images_per_minute=10)
    deadline = Deadline.after(1)
    for error in (deadline.hopeless(2.0), Overloaded("too long"), deadline.exceeded("queue")):
        with pytest.raises(type(error)), caller.admitted(4, lambda images: 1):
            raise error
    # only the last one was let in: 6 are left
    with caller.admitted(6, lambda images: 1):
        pass
    with pytest.raises(BudgetExceeded), caller.admitted(1, lambda images: 1):
        pass


@pytest.mark.anyio
async def test_engines_own_full_queue_is_told_with_the_predicted_time(artefact: Artefact) -> None:
    def full(batch: Batch) -> None:
        raise Overloaded("The queue of the engine is full.", hint="try again", retry_after_s=77)

    async with slow(artefact) as at:
        await at.learn()
        at.engine.before = full
        with pytest.raises(Overloaded, match="queue of the engine") as told:
            await at.ask(Wish(1))
        assert told.value.details["retry_after_s"] == 1


@pytest.mark.anyio
async def test_early_429_and_504_over_http(run_app: Any) -> None:
    async with run_app(concurrency=1, max_batch=4) as running:
        running.engine.before = lambda batch: time.sleep(0.3)

        async def ask(query: str, deadline_ms: int) -> Any:
            headers = {"X-Deadline-Ms": str(deadline_ms)}
            return await running.client.post(f"/generate?{query}", headers=headers)

        assert (await ask("class=1&n=4", 20_000)).status_code == 200
        queue = [asyncio.create_task(ask("class=1&n=4", 20_000)) for _ in range(9)]
        while running.service.queued_images("toy") < 32:
            await asyncio.sleep(0.005)
        began_s = time.perf_counter()
        late = await ask("class=0&n=4", 1500)
        never = await ask("class=0&n=4", 200)
        assert time.perf_counter() - began_s < 0.25
        problem = late.json()
        assert (late.status_code, problem["code"]) == (429, "overloaded")
        assert problem["predicted_ms"] > problem["deadline_ms"] == 1500
        assert int(late.headers["retry-after"]) == problem["retry_after_s"] >= 1
        assert (never.status_code, never.json()["stage"]) == (504, "queue")
        assert {answer.status_code for answer in await asyncio.gather(*queue)} == {200}
        assert not any(0 in batch.class_id for batch in running.engine.batches[2:])
        metrics = (await running.client.get("/metrics")).text
        for reason, count in (("deadline_queue", 1), ("deadline_idle", 1), ("queue_full", 0)):
            line = f'cat_serve_refused_total{{model="toy",reason="{reason}"}} {count}.0'
            assert line in metrics
        values = {
            line.split("{")[0]: float(line.split()[-1])
            for line in metrics.splitlines()
            if 'graph="plain"' in line
        }
        a, b = values["cat_serve_pace_image_seconds"], values["cat_serve_pace_pass_seconds"]
        assert 4 * a + b == pytest.approx(0.3, rel=0.2)
        assert 0 < values["cat_serve_predicted_seconds"] <= 0.4
        assert 'cat_serve_prediction_ratio_count{model="toy"} 9.0' in metrics


@pytest.mark.anyio
@pytest.mark.slow
async def test_prediction_is_within_a_quarter_on_the_model_that_ships(shipped: Artefact) -> None:
    from cat_serve.backends.base import EngineOptions
    from cat_serve.backends.onnxruntime import open_backend

    local = LocalEngine(open_backend(shipped, EngineOptions(threads=1)), 1)
    batcher = Batcher(local, Slots(1), Limits())
    z_shape = shipped.manifest.z_shape

    class Shoes(Wish):
        def batch(self, start: int, stop: int) -> Batch:
            count = stop - start
            z = np.zeros((count, *z_shape), np.float32)
            return Batch(z, np.full(count, 7), np.ones(count, np.float32))

    for n in (1, 16, 4, 8, 16, 2, 16, 8):
        await batcher.submit(Shoes(n))
    ratios = []
    for _ in range(3):
        asked = [asyncio.create_task(batcher.submit(Shoes(n))) for n in (16, 5, 40, 1, 30)]
        await asyncio.sleep(0)
        predicted_s, began_s = batcher.forecast.drained_s(), time.perf_counter()
        await asyncio.gather(*asked)
        assert predicted_s is not None
        ratios.append((time.perf_counter() - began_s) / predicted_s)
    print(f"measured / predicted: {[round(ratio, 2) for ratio in ratios]}")
    assert np.median(ratios) == pytest.approx(1.0, abs=0.25)
    await batcher.close()
    await local.close()
