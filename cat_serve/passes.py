"""One forward pass for the rows of several requests: put together, run, and taken apart again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np

from cat_serve.backends.base import Backend
from cat_serve.contract import Batch, Output


class Rows(Protocol):
    """What one request asks for; its rows become tensors only when a pass takes them."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Batch:
        """Return the inputs of the rows `start` to `stop` - 1; called in an engine's thread."""


class Ticket:
    """One request on its way: how many rows were taken, what came back, and when."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.taken = 0
        self.asked_s = time.perf_counter()
        self.done: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        self.busy_s = 0.0
        self._parts: dict[int, Output] = {}
        self._in_engine = 0
        self._entered_s = 0.0

    @property
    def waiting(self) -> int:
        return len(self.rows) - self.taken

    def enter(self, now_s: float) -> None:
        """Note that rows go into the engine."""
        if not self._in_engine:
            self._entered_s = now_s
        self._in_engine += 1

    def leave(self, start: int, outcome: Output | Exception, now_s: float) -> None:
        """Take what the engine made of the rows from `start` on; the last ones complete the ticket."""
        self._in_engine -= 1
        if not self._in_engine:
            self.busy_s += now_s - self._entered_s
        if self.done.done():  # whoever asked is gone, or other rows failed
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
            return
        self._parts[start] = outcome
        if not self.waiting and not self._in_engine:
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


def forward(backend: Backend, shares: Sequence[Share]) -> list[Output | Exception]:
    """Make the rows of all shares in one pass, in an engine's thread; return what each share gets.

    A share whose inputs cannot be made fails alone; if the engine fails, all shares of the pass do.
    """
    inputs: dict[Share, Batch] = {}
    outcomes: dict[Share, Output | Exception] = {}
    for share in shares:
        try:
            inputs[share] = share.ticket.rows.batch(share.start, share.stop)
        except Exception as error:
            outcomes[share] = error
    if inputs:
        try:
            output = backend.run(concatenated(list(inputs.values())))
        except Exception as error:
            outcomes.update(dict.fromkeys(inputs, error))
        else:
            first = 0
            for share in inputs:
                outcomes[share] = sliced(output, slice(first, first + len(share)))
                first += len(share)
    return [outcomes[share] for share in shares]


T = TypeVar("T", Batch, Output)


def concatenated(parts: Sequence[T]) -> T:
    """Return the rows of several batches, or of several outputs, as one."""
    if len(parts) == 1:
        return parts[0]
    columns = [[getattr(part, field.name) for part in parts] for field in fields(parts[0])]
    return type(parts[0])(*map(np.concatenate, columns))


def sliced(rows: T, which: slice) -> T:
    """Return some of the rows."""
    return type(rows)(*(getattr(rows, field.name)[which] for field in fields(rows)))
