"""What tests of the queue share: requests that can be told apart in the engine, and a batcher on a fake one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.local import LocalEngine
from cat_serve.batching import Batcher, Limits, Made
from cat_serve.contract import Batch, Output
from cat_serve.manifest import Artefact
from cat_serve.slots import Slots


@dataclass(frozen=True)
class Wish:
    """Rows of one class, which tells requests apart in what the engine recorded; z counts the rows."""

    class_id: int
    n: int = 1

    def __len__(self) -> int:
        return self.n

    def batch(self, start: int, stop: int) -> Batch:
        count = stop - start
        z = np.repeat(np.arange(start, stop, dtype=np.float32)[:, None] / 64, 6, axis=1)
        return Batch(z, np.full(count, self.class_id), np.ones(count, np.float32))


@dataclass
class Bench:
    """A batcher on a fake engine."""

    batcher: Batcher
    engine: FakeBackend

    def ask(self, wish: Wish) -> asyncio.Task[Made]:
        return asyncio.create_task(self.batcher.submit(wish))

    def passes(self) -> list[dict[int, int]]:
        """Return how many rows of each class every pass had."""
        return [dict(Counter(batch.class_id.tolist())) for batch in self.engine.batches]

    def expected(self, wish: Wish) -> Output:
        return FakeBackend(self.engine.artefact).run(wish.batch(0, wish.n))


@asynccontextmanager
async def bench(artefact: Artefact, concurrency: int = 1, **limits: Any) -> AsyncIterator[Bench]:
    engine = FakeBackend(artefact)
    local = LocalEngine(engine, concurrency)
    batcher = Batcher(local, Slots(concurrency), Limits(**limits))
    yield Bench(batcher, engine)
    await batcher.close()
    await local.close()


async def gathered(*asked: Awaitable[Made]) -> list[Made]:
    async with asyncio.timeout(20):
        return list(await asyncio.gather(*asked))
