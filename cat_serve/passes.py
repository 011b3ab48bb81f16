"""One forward pass for the rows of several requests: put together, run, and taken apart again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np

from cat_serve.backends.base import Engine
from cat_serve.contract import Batch, Output, StudioBatch
from cat_serve.deadlines import NEVER, Deadline, Stage
from cat_serve.errors import InvalidInput
from cat_serve.observation import OUTGOING, current


class Rows(Protocol):
    """What one request asks for; its rows become tensors only when a pass takes them."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Batch | StudioBatch:
        """Return the inputs of the rows `start` to `stop` - 1; called in an engine's thread."""


Keep = Callable[[Output], Output]


def everything(output: Output) -> Output:
    """Keep what the engine answered as it is."""
    return output


class Ticket:
    """One request on its way: how many rows were taken, what came back, and when."""

    def __init__(self, rows: Rows, deadline: Deadline = NEVER, keep: Keep = everything) -> None:
        self.rows = rows
        self.deadline = deadline
        self.keep = keep
        self.taken = 0
        self.asked_s = time.perf_counter()
        self.done: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        self.busy_s = 0.0
        self.passes: set[Pass] = set()
        self._parts: dict[int, Output] = {}
        self._entered_s = 0.0
        self._begun = False
        self.stages = current().stages()
        self.stages.enter("queue")

    @property
    def waiting(self) -> int:
        return len(self.rows) - self.taken

    @property
    def stage(self) -> Stage:
        return "generate" if self.passes else "queue"

    def enter(self, engine_pass: Pass, now_s: float) -> None:
        """Note that rows go into the engine."""
        if not self._begun:
            self._begun = True
            self.stages.enter("generate")
        if not self.passes:
            self._entered_s = now_s
        self.passes.add(engine_pass)

    def leave(
        self, engine_pass: Pass, start: int, outcome: Output | Exception, now_s: float
    ) -> None:
        """Take what the engine made of the rows from `start` on; the last ones complete the ticket."""
        self.passes.discard(engine_pass)
        if not self.passes:
            self.busy_s += now_s - self._entered_s
        if self.done.done():  # whoever asked is gone, or other rows failed
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
            return
        self._parts[start] = self.keep(outcome)
        if not self.waiting and not self.passes:
            parts = [self._parts[start] for start in sorted(self._parts)]
            self.done.set_result(concatenated(parts))


@dataclass(frozen=True)
class Share:
    """The rows `start` to `stop` - 1 of one request, in one pass."""

    ticket: Ticket
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Pass:
    """The rows of all shares, made in one forward pass.

    A share whose inputs cannot be made fails alone; if the engine fails, all shares do.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = shares
        self._made: dict[Share, Batch | StudioBatch] = {}
        self._outcomes: dict[Share, Output | Exception] = {}

    def __len__(self) -> int:
        return sum(map(len, self.shares))

    async def run(self, engine: Engine) -> list[Output | Exception]:
        """Return what each share gets."""
        if engine.has_queue:  # then all rows are of one request
            OUTGOING.set(self.shares[0].ticket.stages.metadata())
        deadline = max((share.ticket.deadline for share in self.shares), key=lambda d: d.at_s)
        try:
            output = await engine.run(self._inputs, deadline)
        except Exception as error:
            for share in self.shares:
                self._outcomes.setdefault(share, error)
        else:
            first = 0
            for share in self._made:
                self._outcomes[share] = sliced(output, slice(first, first + len(share)))
                first += len(share)
        return [self._outcomes[share] for share in self.shares]

    def _inputs(self) -> Batch | StudioBatch:
        """Make the inputs, in an engine's thread; fails only if those of every share do."""
        for share in self.shares:
            try:
                self._made[share] = share.ticket.rows.batch(share.start, share.stop)
            except Exception as error:
                self._outcomes[share] = error
        if not self._made:
            raise InvalidInput("None of the inputs can be made.")
        return concatenated(list(self._made.values()))


T = TypeVar("T", bound=Batch | StudioBatch | Output)


def concatenated(parts: Sequence[T]) -> T:
    """Return the rows of several batches, or of several outputs, as one."""
    if len(parts) == 1:
        return parts[0]
    columns = [[getattr(part, field.name) for part in parts] for field in fields(parts[0])]
    return type(parts[0])(*map(np.concatenate, columns))


def sliced(rows: T, which: slice) -> T:
    """Return some of the rows."""
    return type(rows)(*(getattr(rows, field.name)[which] for field in fields(rows)))
