"""The queue and its forward passes: what is run together, in which order, and what is never run.

Counted on the engine's side: which rows each pass had, never how long it took.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cat_serve.batching import Made
from cat_serve.contract import Batch
from cat_serve.errors import BackendError, BackendUnavailable, InvalidInput, Overloaded
from cat_serve.manifest import Artefact
from tests.serving.queues import Wish, bench, gathered

pytestmark = pytest.mark.anyio


class BrokenWish(Wish):
    def batch(self, start: int, stop: int) -> Batch:
        raise InvalidInput("These inputs cannot be made.")


@pytest.fixture
def artefact(add_model: Callable[..., Artefact]) -> Artefact:
    return add_model(max_batch=8)


async def test_idle_engine_starts_a_lone_request_at_once(artefact: Artefact) -> None:
    async with bench(artefact) as at:
        (made,) = await gathered(at.ask(Wish(1, 3)))
        assert at.passes() == [{1: 3}]
        expected = at.expected(Wish(1, 3))
        assert np.array_equal(made.output.images, expected.images)
        assert made.output.ok.tolist() == [True] * 3


async def test_what_queued_while_the_engine_was_busy_is_one_pass(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact) as at:
        at.engine.before = steps
        wishes = [Wish(0), Wish(1, 2), Wish(2), Wish(3, 4)]
        asked = [at.ask(wishes[0])]
        await steps.until_entered(1)
        asked += [at.ask(wish) for wish in wishes[1:]]
        await steps.until(lambda: at.batcher.waiting == 7)
        steps.allow(2)
        for wish, made in zip(wishes, await gathered(*asked), strict=True):
            assert np.array_equal(made.output.images, at.expected(wish).images)
        assert at.passes() == [{0: 1}, {1: 2, 2: 1, 3: 4}]


@pytest.mark.parametrize(("setting", "largest"), [(3, 3), (100, 8)])
async def test_pass_is_never_larger_than_setting_and_model_allow(
    artefact: Artefact, setting: int, largest: int
) -> None:
    async with bench(artefact, max_batch=setting) as at:
        (made,) = await gathered(at.ask(Wish(1, 20)))
        sizes = [len(batch) for batch in at.engine.batches]
        assert (max(sizes), sum(sizes)) == (largest, 20)
        assert np.array_equal(made.output.images, at.expected(Wish(1, 20)).images)


async def test_queue_counts_images_and_refuses_at_once(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, max_queued_images=10, max_batch=4) as at:
        at.engine.before = steps
        busy = at.ask(Wish(0))
        await steps.until_entered(1)
        waiting = [at.ask(Wish(1, 6)), at.ask(Wish(2, 3))]
        await steps.until(lambda: at.batcher.waiting == 9)
        with pytest.raises(Overloaded) as refused:
            await at.batcher.submit(Wish(3, 2))
        assert refused.value.details["waiting"] == 9
        assert refused.value.details["limit"] == 10
        last = at.ask(Wish(4))  # one more fits
        steps.allow(10)
        await gathered(busy, *waiting, last)
        assert not any(3 in batch.class_id for batch in at.engine.batches)


async def test_engines_failure_fails_the_rows_of_that_pass_only(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact, max_batch=4) as at:

        def fail_on_class_2(batch: Batch) -> None:
            steps(batch)
            if 2 in batch.class_id:
                raise BackendError("The engine failed.")

        at.engine.before = fail_on_class_2
        first = at.ask(Wish(0))
        await steps.until_entered(1)
        asked = [first, *(at.ask(Wish(class_id, 2)) for class_id in (1, 2, 3, 4))]
        await steps.until(lambda: at.batcher.waiting == 8)
        steps.allow(10)
        async with asyncio.timeout(20):
            got = await asyncio.gather(*asked, return_exceptions=True)
        # one row each of 1, 2, 3, 4 was in the pass that failed; none of their other rows is started
        assert at.passes() == [{0: 1}, {1: 1, 2: 1, 3: 1, 4: 1}]
        assert [type(one) for one in got] == [Made, *[BackendError] * 4]
        assert at.batcher.waiting == 0
        assert len(await gathered(at.ask(Wish(3, 2)))) == 1


async def test_rows_of_a_failed_request_are_not_started(artefact: Artefact) -> None:
    async with bench(artefact, max_batch=4) as at:

        def fail(batch: Batch) -> None:
            raise OSError("disk")

        at.engine.before = fail
        with pytest.raises(OSError, match="disk"):
            await at.batcher.submit(Wish(0, 40))
        assert at.passes() == [{0: 4}]
        assert at.batcher.waiting == 0


async def test_inputs_that_cannot_be_made_fail_their_own_request(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact) as at:
        at.engine.before = steps
        asked = [at.ask(Wish(0))]
        await steps.until_entered(1)
        asked += [at.ask(Wish(1)), at.ask(BrokenWish(2)), at.ask(Wish(3))]
        await steps.until(lambda: at.batcher.waiting == 3)
        steps.allow(2)
        async with asyncio.timeout(20):
            got = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in got] == [Made, Made, InvalidInput, Made]
        assert at.passes() == [{0: 1}, {1: 1, 3: 1}]


async def test_cancelled_rows_are_never_started(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, max_batch=4) as at:
        at.engine.before = steps
        half_done = at.ask(Wish(0, 20))
        await steps.until_entered(1)
        untouched, kept = at.ask(Wish(1, 5)), at.ask(Wish(2))
        await steps.until(lambda: at.batcher.waiting == 22)
        half_done.cancel()
        untouched.cancel()
        await steps.until(lambda: at.batcher.waiting == 1)
        steps.allow(10)
        await gathered(kept)
        assert at.passes() == [{0: 4}, {2: 1}]


async def test_delay_ends_as_soon_as_the_pass_is_full(artefact: Artefact) -> None:
    async with bench(artefact, concurrency=4, max_batch=3, batch_delay_ms=60_000) as at:
        first = at.ask(Wish(0))
        await asyncio.sleep(0)
        asked = [first, at.ask(Wish(1)), at.ask(Wish(2))]
        await gathered(*asked)  # long before the minute is over
        assert at.passes() == [{0: 1, 1: 1, 2: 1}]


async def test_delay_ends_without_company_too(artefact: Artefact) -> None:
    async with bench(artefact, max_batch=3, batch_delay_ms=5) as at:
        (made,) = await gathered(at.ask(Wish(0)))
        assert at.passes() == [{0: 1}]
        assert made.queue_ms >= 5


async def test_cancelling_during_the_delay_leaves_nothing_behind(artefact: Artefact) -> None:
    async with bench(artefact, max_batch=2, batch_delay_ms=60_000) as at:
        gone = at.ask(Wish(0))
        for _ in range(5):
            await asyncio.sleep(0)
        gone.cancel()
        await gathered(at.ask(Wish(1, 2)))
        assert at.passes() == [{1: 2}]


async def test_close_makes_what_waits_and_refuses_the_rest(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, batch_delay_ms=60_000) as at:
        at.engine.before = steps
        asked = [at.ask(Wish(0)), at.ask(Wish(1))]
        await steps.until(lambda: at.batcher.waiting == 2)
        closing = asyncio.create_task(at.batcher.close())
        await steps.until_entered(1)
        with pytest.raises(BackendUnavailable, match="shutting down"):
            await at.batcher.submit(Wish(2))
        steps.allow(2)
        await gathered(*asked)
        await closing
        assert at.passes() == [{0: 1, 1: 1}]


async def test_time_in_the_engine_and_in_the_queue_are_told_apart(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact, max_batch=1) as at:
        at.engine.before = steps
        began_s = time.perf_counter()
        asked = [at.ask(Wish(0)), at.ask(Wish(1))]
        await steps.until_entered(1)
        await asyncio.sleep(0.05)
        steps.allow(2)
        first, second = await gathered(*asked)
        whole_ms = 1e3 * (time.perf_counter() - began_s)
        assert first.generate_ms >= 50  # held back inside the engine
        assert second.queue_ms >= 50  # and meanwhile outside of it
        for made in (first, second):
            assert made.queue_ms >= 0
            assert made.queue_ms + made.generate_ms <= whole_ms


@pytest.mark.parametrize("seed", range(5))
async def test_any_mixture_of_arrivals_failures_and_departures_leaves_a_clean_queue(
    artefact: Artefact, seed: int
) -> None:
    """Whoever stays gets exactly their own images, or the failure of a pass that they were in."""
    draw = np.random.default_rng(seed)
    failed: list[Batch] = []

    def sometimes_fail(batch: Batch) -> None:
        if len(failed) < 5 and draw.random() < 0.1:
            failed.append(batch)
            raise BackendError("The engine failed.")

    async with bench(artefact, concurrency=2, max_batch=5, max_queued_images=10_000) as at:
        at.engine.before = sometimes_fail
        wishes = [Wish(int(draw.integers(5)), int(draw.integers(1, 20))) for _ in range(120)]
        asked = []
        for wish in wishes:
            asked.append(at.ask(wish))
            if draw.random() < 0.2:
                asked[draw.integers(len(asked))].cancel()
            for _ in range(draw.integers(4)):
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            got = await asyncio.gather(*asked, return_exceptions=True)
        assert at.batcher.waiting == 0
        assert max(map(len, at.engine.batches)) == 5
        kinds = Counter(type(one) for one in got)
        assert kinds.keys() <= {Made, BackendError, asyncio.CancelledError}
        assert kinds[Made] > 10
        for wish, made in zip(wishes, got, strict=True):
            if isinstance(made, Made):
                assert np.array_equal(made.output.images, at.expected(wish).images)
