"""The queue in front of an engine that has one of its own: what is sent there, in which order, and what is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.contract import Batch, Output
from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendError, BackendUnavailable, DeadlineExceeded, Overloaded
from cat_serve.manifest import Artefact, Determinism
from cat_serve.slots import Slots
from tests.serving.queues import Wish

pytestmark = pytest.mark.anyio


@dataclass
class Elsewhere:
    """An engine that computes elsewhere: every call waits until the test lets it go."""

    artefact: Artefact
    name: str = "elsewhere"
    precision: Any = "fp32"
    has_queue: bool = True
    determinism: Determinism = "bytes"
    calls: list[tuple[int, int]] = field(default_factory=list)
    deadlines: list[Deadline] = field(default_factory=list)
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    fails_on: int | None = None
    gone: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def why_unavailable(self) -> str | None:
        return None

    async def run(self, make: Callable[[], Batch], deadline: Deadline) -> Output:
        if self.gone:
            raise BackendUnavailable("There is no engine.")
        batch = make()
        call = (int(batch.class_id[0]), len(batch))
        self.calls.append(call)
        self.deadlines.append(deadline)
        try:
            if call[0] == self.fails_on:
                raise BackendError("The engine failed.")
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call)
            raise
        return FakeBackend(self.artefact).run(batch)

    async def close(self) -> None:
        pass


@dataclass
class Bench:
    batcher: Batcher
    engine: Elsewhere
    slots: Slots

    def ask(self, wish: Wish, deadline_ms: float = 60_000) -> asyncio.Task[Made]:
        return asyncio.create_task(self.batcher.submit(wish, Deadline.after(deadline_ms)))

    async def until_called(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.engine.calls) < count:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(artefact: Artefact, concurrency: int = 4, **limits: Any) -> AsyncIterator[Bench]:
    engine, slots = Elsewhere(artefact), Slots(concurrency)
    batcher = Batcher(engine, slots, Limits(**limits))
    yield Bench(batcher, engine, slots)
    engine.go.set()
    await asyncio.wait_for(batcher.close(), 20)
    assert slots.taken == 0  # every place was given back


@pytest.fixture
def artefact(add_model: Callable[..., Artefact]) -> Artefact:
    return add_model(max_batch=8)


async def test_rows_of_each_request_are_calls_of_their_own(artefact: Artefact) -> None:
    async with bench(artefact, max_batch=4, batch_delay_ms=60_000) as at:
        wishes = [Wish(0, 1), Wish(1, 2), Wish(2, 7)]
        asked = [at.ask(wish) for wish in wishes]
        await at.until_called(4)
        assert at.engine.calls == [(0, 1), (1, 2), (2, 4), (2, 3)]
        at.engine.go.set()
        for wish, made in zip(wishes, await asyncio.gather(*asked), strict=True):
            expected = FakeBackend(artefact).run(wish.batch(0, wish.n))
            assert np.array_equal(made.output.images, expected.images)


async def test_large_request_takes_turns_with_small_ones(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=1, max_batch=4) as at:
        large = at.ask(Wish(0, 40))
        await at.until_called(1)
        small = [at.ask(Wish(1)), at.ask(Wish(2, 2))]
        await asyncio.sleep(0)
        at.engine.go.set()
        await asyncio.gather(large, *small)
        assert at.engine.calls[:4] == [(0, 4), (0, 4), (1, 1), (2, 2)]


async def test_stream_of_small_requests_cannot_starve_a_large_one(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=1, max_batch=4) as at:
        at.engine.go.set()
        large = at.ask(Wish(0, 40))

        async def ask_on() -> None:
            while not large.done():
                await at.ask(Wish(1))

        await asyncio.wait_for(asyncio.gather(*(ask_on() for _ in range(5))), 20)
        # ten calls of its own, and between two of them one of each of the others
        assert sum(call == (0, 4) for call in at.engine.calls) == 10
        assert len(at.engine.calls) <= 10 * 6 + 5


async def test_no_more_calls_than_places_and_the_rest_is_bounded(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=2, max_batch=4, max_queued_images=5) as at:
        asked = [at.ask(Wish(class_id)) for class_id in (0, 1)]
        await at.until_called(2)
        asked += [at.ask(Wish(2, 5))]
        await asyncio.sleep(0.01)
        assert len(at.engine.calls) == 2
        with pytest.raises(Overloaded):
            await at.batcher.submit(Wish(3))
        at.engine.go.set()
        await asyncio.gather(*asked)


async def test_calls_of_whoever_is_gone_are_cancelled_and_no_others(artefact: Artefact) -> None:
    async with bench(artefact, max_batch=4) as at:
        gone, kept = at.ask(Wish(0, 7)), at.ask(Wish(1))
        await at.until_called(3)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        at.engine.go.set()
        await kept
        assert sorted(at.engine.cancelled) == [(0, 3), (0, 4)]


async def test_call_that_is_cancelled_before_its_first_step_gives_its_place_back(
    artefact: Artefact,
) -> None:
    async with bench(artefact, concurrency=1) as at:
        gone = at.ask(Wish(0))
        while not at.batcher._running:
            await asyncio.sleep(0)
        gone.cancel()
        at.engine.go.set()
        async with asyncio.timeout(20):
            await at.ask(Wish(1))
        assert at.engine.calls[-1] == (1, 1)


async def test_calls_of_a_request_that_is_late_are_cancelled(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=1, max_batch=4) as at:
        late = at.ask(Wish(0, 6), deadline_ms=100)
        with pytest.raises(DeadlineExceeded) as told:
            await late
        assert told.value.details["stage"] == "generate"
        await asyncio.sleep(0)
        assert at.engine.cancelled == [(0, 4)]
        assert at.batcher.waiting == 0
        assert at.engine.deadlines[0].total_ms == 100


async def test_failure_of_one_call_takes_the_requests_other_calls_back(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=8, max_batch=2) as at:
        kept = at.ask(Wish(1, 2))
        await at.until_called(1)
        at.engine.fails_on = 0
        failed = at.ask(Wish(0, 6))
        with pytest.raises(BackendError):
            await failed
        at.engine.go.set()
        assert len((await kept).output.ok) == 2
        assert not any(call == (1, 2) for call in at.engine.cancelled)


async def test_engine_that_is_gone_before_the_inputs_are_made_fails_the_request(
    artefact: Artefact,
) -> None:
    async with bench(artefact, max_batch=4) as at:
        at.engine.gone = True
        with pytest.raises(BackendUnavailable):
            await asyncio.wait_for(at.ask(Wish(0, 9)), 20)
        at.engine.gone = False
        at.engine.go.set()
        assert len((await at.ask(Wish(1, 2))).output.ok) == 2
