"""Whose turn it is: no request, however large, and no stream of them can starve another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.local import LocalEngine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.manifest import Artefact
from cat_serve.slots import Slots
from tests.serving.queues import Wish, bench, gathered

pytestmark = pytest.mark.anyio


@pytest.fixture
def artefact(add_model: Callable[..., Artefact]) -> Artefact:
    return add_model(max_batch=8)


async def test_large_request_cannot_starve_small_ones(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, max_batch=4) as at:
        at.engine.before = steps
        large = at.ask(Wish(0, 40))
        await steps.until_entered(1)
        small = [at.ask(Wish(1)), at.ask(Wish(2, 2))]
        await steps.until(lambda: at.batcher.waiting == 39)
        steps.allow(3)
        await gathered(*small)
        assert not large.done()
        steps.allow(40)
        await gathered(large)
        assert at.passes()[:3] == [{0: 4}, {0: 2, 1: 1, 2: 1}, {0: 3, 2: 1}]


async def test_stream_of_small_requests_cannot_starve_a_large_one(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact, max_batch=4) as at:
        at.engine.before = steps
        large = at.ask(Wish(0, 12))
        small: list[asyncio.Task[Made]] = []
        passes = 0
        while not large.done():
            passes += 1
            await steps.until_entered(passes)
            while at.batcher.waiting < 24:  # they never end
                small.append(at.ask(Wish(1)))
                await asyncio.sleep(0)
            steps.allow(1)
            await steps.until(lambda: steps.entered > passes or large.done())  # noqa: B023
            assert passes < 100
        # at most 24 others have a turn between two of its own
        assert passes <= 12 * (24 / 4 + 1)
        steps.allow(1000)
        await gathered(large, *small)


async def test_stream_of_large_requests_cannot_starve_a_small_one(
    artefact: Artefact, steps: Any
) -> None:
    async with bench(artefact, max_batch=4, max_queued_images=1000) as at:
        at.engine.before = steps
        large = [at.ask(Wish(0, 20)) for _ in range(3)]
        await steps.until_entered(1)
        for number in range(5):
            small = at.ask(Wish(1 + number % 4))
            large.append(at.ask(Wish(0, 20)))  # behind it, and never the last
            await asyncio.sleep(0)
            entered = steps.entered
            while not small.done():
                steps.allow(1)
                await steps.until(lambda: steps.entered > entered or small.done())  # noqa: B023
                entered = steps.entered
            took = [number for number, one in enumerate(at.passes()) if any(one)]
            assert took[-1] <= 3 * (number + 1) + 1
        steps.allow(1000)
        await gathered(*large)


async def test_two_large_requests_share_every_pass(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, max_batch=4) as at:
        at.engine.before = steps
        asked = [at.ask(Wish(0, 12)), at.ask(Wish(1, 12))]
        steps.allow(10)
        await gathered(*asked)
        assert at.passes() == [{0: 2, 1: 2}] * 6


async def test_several_passes_run_at_once(artefact: Artefact, steps: Any) -> None:
    async with bench(artefact, concurrency=2, max_batch=2) as at:
        at.engine.before = steps
        asked = at.ask(Wish(0, 6))
        await steps.until_entered(2)
        assert at.batcher.waiting == 2
        steps.allow(3)
        (made,) = await gathered(asked)
        assert np.array_equal(made.output.images, at.expected(Wish(0, 6)).images)


async def test_models_share_the_slots(artefact: Artefact, steps: Any) -> None:
    engines = [FakeBackend(artefact, before=steps) for _ in range(2)]
    slots = Slots(1)
    local = [LocalEngine(engine, 4) for engine in engines]
    batchers = [Batcher(engine, slots, Limits()) for engine in local]
    asked = [asyncio.create_task(one.submit(Wish(0, 80))) for one in batchers]
    await steps.until_entered(1)
    assert steps.entered == 1
    for entered in (2, 3, 4, 5):
        steps.allow(1)
        await steps.until_entered(entered)
    assert sorted(len(engine.batches) for engine in engines) == [2, 3]
    steps.allow(100)
    await gathered(*asked)
    for batcher in batchers:
        await batcher.close()
    for engine in local:
        await engine.close()
