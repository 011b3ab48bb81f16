"""What is learned from passes, and what follows for requests: against closed forms, noise, and the real queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.local import LocalEngine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.contract import Batch
from cat_serve.deadlines import Deadline
from cat_serve.errors import BudgetExceeded, NeverInTime, Overloaded
from cat_serve.forecast import Forecast, completed_s, turns
from cat_serve.keys import Caller
from cat_serve.manifest import Artefact
from cat_serve.pace import CHANGED, MEMORY, RIDGE, SHORT_MEMORY, Pace
from cat_serve.slots import Slots

positive = st.floats(1e-4, 10.0)
sizes = st.lists(st.integers(1, 64), min_size=2, max_size=40)
queues = st.lists(st.integers(1, 40), max_size=12)


def learned(passes: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for images, seconds in passes:
        pace.add(images, seconds)
    return pace


def test_nothing_is_known_before_the_first_pass() -> None:
    pace = Pace()
    assert pace.line is None
    assert not pace.refuses(1, 0.0, 0.001)


@given(positive, st.integers(1, 64), st.integers(1, 30))
def test_passes_of_one_size_cost_what_their_images_cost(
    seconds: float, images: int, count: int
) -> None:
    line = learned([(images, seconds)] * count).line
    assert line is not None
    assert line.at(images) == pytest.approx(seconds, rel=1e-6)
    assert line.at(2 * images) == pytest.approx(2 * seconds, rel=1e-6)


@given(positive, positive, st.permutations([1, 2, 4, 8, 16, 16, 8, 3]))
def test_line_is_found_again(per_image_s: float, per_pass_s: float, images: list[int]) -> None:
    line = learned([(n, per_image_s * n + per_pass_s) for n in images * 4]).line
    assert line is not None
    for n in range(1, 17):
        assert line.at(n) == pytest.approx(per_image_s * n + per_pass_s, rel=0.02)


@settings(max_examples=60)
@given(sizes, st.integers(0, 2**32 - 1))
def test_line_is_the_weighted_least_squares_of_numpy(images: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = np.array(images, float)
    t = (0.01 + 0.02 * n) * draw.uniform(0.8, 1.2, len(n))
    pace, weight = Pace(), np.zeros(len(n))
    for i, (count, seconds) in enumerate(zip(images, t.tolist(), strict=True)):
        expected_s = pace.seconds_for(count)
        as_before = i == 0 or 1 / CHANGED <= seconds / expected_s <= CHANGED
        weight *= MEMORY if as_before else SHORT_MEMORY
        weight[i] = 1
        pace.add(count, seconds)
    line = pace.line
    assert line is not None

    def cost(a: float, b: float) -> float:
        return float(weight @ (a * n + b - t) ** 2 + RIDGE * weight.sum() * b * b)

    rows = np.sqrt(weight)[:, None] * np.stack([n, np.ones_like(n)], axis=1)
    prior = np.array([[0.0, np.sqrt(RIDGE * weight.sum())]])
    answer = np.append(np.sqrt(weight) * t, 0.0)
    best = np.linalg.lstsq(np.append(rows, prior, axis=0), answer)[0]
    if min(best) >= 0:
        assert line == pytest.approx(tuple(best), rel=1e-3, abs=1e-6)
        return
    assert min(line) == pytest.approx(
        0, abs=1e-9
    )  # neither number may be negative: then the best is on an axis
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert cost(*line) <= cost(line[0] * factor, line[1] * factor)
    assert cost(*line) <= min(cost(0, float(t.mean())), cost(float(t @ n / (n @ n)), 1e-4))


@given(positive, positive, st.integers(0, 2**32 - 1))
def test_noise_of_a_tenth_moves_the_prediction_by_less_than_a_fifth(
    per_image_s: float, per_pass_s: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    images = draw.integers(1, 17, 60)
    noise = draw.uniform(0.9, 1.1, 60)
    true = per_image_s * images + per_pass_s
    line = learned(list(zip(images.tolist(), (true * noise).tolist(), strict=True))).line
    assert line is not None
    assert min(line) >= 0
    assert line.at(8) == pytest.approx(8 * per_image_s + per_pass_s, rel=0.2)


@given(st.sampled_from([20.0, 1 / 20]), st.integers(1, 16))
def test_change_of_conditions_is_learned_within_fifteen_passes(factor: float, images: int) -> None:
    pace = learned([(images, 0.1)] * 50 + [(images, 0.1 * factor)] * 15)
    assert pace.seconds_for(images) == pytest.approx(0.1 * factor, rel=0.25)


def test_one_slow_start_does_not_refuse_for_ever() -> None:
    pace = learned([(4, 10.0)])
    assert pace.refuses(4, 10.0, 9.0)
    assert not pace.refuses(4, 10.0, 11.0)
    assert any(not pace.refuses(4, 10.0, 1.0) for _ in range(30))
    pace.add(1, 2.5)  # a smaller pass proves nothing
    assert not pace.refuses(4, 10.0, 1.0)
    pace.add(4, 10.0)
    assert pace.refuses(4, 10.0, 9.0)


def reference(waiting: list[int], images: int, max_batch: int) -> tuple[list[int], list[int]]:
    """Take rows as the queue does, one of each request in turn, and count."""
    queue = deque([*enumerate(waiting, 1), (0, images)])
    own, later = list[int](), list[int]()
    done = False
    while queue:
        into, size = (later if done else own), 0
        while queue and size < max_batch:
            who, rows = queue.popleft()
            size += 1
            if rows > 1:
                queue.append((who, rows - 1))
            elif who == 0:
                done = True
        into.append(size)
    return own, later


@given(queues, st.integers(1, 64), st.integers(1, 16))
def test_passes_before_a_requests_last_image_are_those_of_fair_turns(
    waiting: list[int], images: int, max_batch: int
) -> None:
    assert turns(waiting, images, max_batch, apart=False) == reference(waiting, images, max_batch)


def test_engine_with_a_queue_gets_calls_in_turn() -> None:
    assert turns([10, 1], 5, 4, apart=True) == ([4, 4, 1, 4, 1], [2])


@given(st.lists(positive, min_size=1, max_size=20))
def test_one_place_makes_one_pass_after_the_other(works: list[float]) -> None:
    for last, end_s in enumerate(accumulate(works, initial=0.5)):
        assert completed_s([0.5], works, last - 1 if last else None, 1, True) == (
            pytest.approx(end_s if last else sum(works) + 0.5)
        )


@given(st.lists(positive, min_size=1, max_size=20), st.integers(1, 8))
def test_machine_that_is_shared_is_never_idle_and_places_apart_are_as_many_machines(
    works: list[float], places: int
) -> None:
    assert completed_s((), works, None, places, True) == pytest.approx(sum(works))
    apart_s = completed_s((), works, None, places, False)
    assert max(max(works), sum(works) / places) <= apart_s + 1e-9
    assert apart_s <= sum(works) / places + max(works) + 1e-9


def test_short_pass_does_not_wait_for_the_long_one_beside_it() -> None:
    assert completed_s([10.0], [1.0], 0, 2, True) == pytest.approx(2.0)
    assert completed_s([10.0], [1.0], 0, 2, False) == pytest.approx(1.0)
    assert completed_s([10.0], [1.0], 0, 1, True) == pytest.approx(11.0)


def test_queues_of_other_models_take_their_turns() -> None:
    slots = Slots(1)
    ours, other = Forecast(slots, 4), Forecast(slots, 4, waiting=lambda: [40])
    for forecast, seconds in ((ours, 0.1), (other, 1.0)):
        forecast._pace.add(4, seconds)
    assert ours.idle_s(8) == pytest.approx(0.2)
    assert ours.request_s(8) == pytest.approx(2.2)  # two passes of the other one in between
    other.close()
    assert ours.request_s(8) == pytest.approx(0.2)


def test_passes_side_by_side_are_counted_by_what_each_got(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    slots = Slots(2)
    shared, apart = Forecast(slots, 8), Forecast(slots, 8, apart=True)
    slots._count(1)
    shared.begin("long", 4)
    apart.begin("long", 4)
    now[0] = 1.0
    slots._count(1)  # another pass begins beside it
    now[0] = 3.0
    shared.end("long", made=True)
    apart.end("long", made=True)
    assert shared._pace.seconds_for(4) == pytest.approx(2.0)  # one second alone, two by halves
    assert apart._pace.seconds_for(4) == pytest.approx(3.0)
    assert apart.idle_s(4) is None  # it never ran alone


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
