"""What is noted of one request on its way: one object that travels with its task, for logs, metrics and traces.

Whoever knows something writes it down here, and only the outermost middleware tells it to anybody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cat_serve.keys import Caller

SpanName = Literal["queue", "generate", "encode"]
Metadata = tuple[tuple[str, str], ...]


class Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...


class Asked(Protocol):
    """A request for images, as the service takes it."""

    @property
    def model(self) -> Named: ...

    def __len__(self) -> int: ...


class Stages(Protocol):
    """The stages that some images of a request go through, one after another."""

    def enter(self, name: SpanName) -> None:
        """End the stage before, and begin this one."""

    def leave(self) -> None:
        """End the last stage; more than once does no harm."""

    def metadata(self) -> Metadata:
        """Return what tells another service which stage it works for."""


class Trace(Protocol):
    """One request of a traced service."""

    def stages(self) -> Stages:
        """Return the stages of some of its images."""


class _Untraced:
    def enter(self, name: SpanName) -> None:
        pass

    def leave(self) -> None:
        pass

    def metadata(self) -> Metadata:
        return ()


UNTRACED: Stages = _Untraced()


@dataclass
class Observation:
    """One request; what is None is not known, or not yet.

    Attributes:
        caller: whose API key it came with.
        model: the model's name; `label` is name@version.
        code: of the problem that it was answered with.
    """

    request_id: str | None = None
    caller: Caller | None = None
    model: str | None = None
    label: str | None = None
    class_id: int | None = None
    seed: int | None = None
    n: int | None = None
    queue_ms: float | None = None
    generate_ms: float | None = None
    encode_ms: float | None = None
    code: str | None = None
    trace: Trace | None = field(default=None, repr=False)

    def asked(self, request: Asked) -> None:
        """Note what the service was asked for. A request of explicit rows has neither class nor seed."""
        self.model, self.label = request.model.name, request.model.label
        self.class_id = getattr(request, "class_id", None)
        self.seed = getattr(request, "seed", None)
        self.n = (self.n or 0) + len(request)

    def stages(self) -> Stages:
        return UNTRACED if self.trace is None else self.trace.stages()

    def timed(self, queue_ms: float, generate_ms: float) -> None:
        """Add the time that some of its images took."""
        self.queue_ms = (self.queue_ms or 0.0) + queue_ms
        self.generate_ms = (self.generate_ms or 0.0) + generate_ms

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Note how long the block takes as the stage `encode`."""
        stages, started_s = self.stages(), time.perf_counter()
        stages.enter("encode")
        try:
            yield
        finally:
            stages.leave()
            self.encode_ms = (self.encode_ms or 0.0) + 1e3 * (time.perf_counter() - started_s)


CURRENT: ContextVar[Observation | None] = ContextVar("observation", default=None)

# For calls to other services: set in the task of a forward pass whose rows are all of one request.
OUTGOING: ContextVar[Metadata] = ContextVar("outgoing", default=())


def current() -> Observation:
    """Return the observation of the request that this task works for; outside of one, a sheet nobody reads."""
    return CURRENT.get() or Observation()
