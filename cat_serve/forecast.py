"""When a request will be done: what runs, what is made before it, and its own images, at the pace of the passes seen."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, zip_longest

from cat_serve.pace import Line, Pace
from cat_serve.slots import Slots

ALONE = 0.95  # share of the machine of a pass that nobody disturbed


class Forecast:
    """What is known of the passes of one queue.

    Passes of an engine in this process share the machine: two side by side take twice as long. Those of an engine with
    a queue of its own are computed elsewhere and take as long as they take; what one takes on an idle engine is known
    there from those that ran alone.

    Args:
        apart: whether the engine has a queue of its own.
        waiting: returns how many images of each request wait, in the order of their turns.
        delay_s: how long a pass that is not full waits for more.
    """

    def __init__(
        self,
        slots: Slots,
        max_batch: int,
        apart: bool = False,
        waiting: Callable[[], Sequence[int]] = tuple,
        delay_s: float = 0.0,
    ) -> None:
        self._slots = slots
        self._max_batch = max_batch
        self._apart = apart
        self._waiting = waiting
        self._delay_s = delay_s
        self._pace = Pace()
        self._alone = Pace() if apart else self._pace
        self._begun: dict[Hashable, tuple[int, float, float]] = {}
        slots.queues.append(self)

    @property
    def line(self) -> Line | None:
        """The seconds of a pass by its images; None before the first one."""
        return self._pace.line

    def begin(self, engine_pass: Hashable, images: int) -> None:
        """Note that a pass begins."""
        self._begun[engine_pass] = (images, time.perf_counter(), self._slots.shared_s)

    def end(self, engine_pass: Hashable, made: bool) -> None:
        """Learn from a pass that has ended, if it made images."""
        if (begun := self._begun.pop(engine_pass, None)) is None:  # it was told before
            return
        images, began_s, began_shared_s = begun
        whole_s = time.perf_counter() - began_s
        shared_s = self._slots.shared_s - began_shared_s
        if made:
            self._pace.add(images, whole_s if self._apart else shared_s)
            if self._apart and shared_s >= ALONE * whole_s:
                self._alone.add(images, whole_s)

    def request_s(self, images: int) -> float | None:
        """Return how long a request takes that comes now, if nobody else comes; None while nothing is known."""
        waiting = self._waiting()
        busy = waiting or self._slots.taken or any(self._others_waiting())
        if not busy:  # the usual case
            return None if self.line is None else self._alone_s(self._pace, images)
        own, later = turns(waiting, images, self._max_batch, self._apart)
        completed_s = self._completed_s(own, later)
        return None if completed_s is None else completed_s + self._lingers_s(sum(waiting) + images)

    def drained_s(self) -> float | None:
        """Return how long it takes until all that waits or runs now is made."""
        return self._completed_s(self._sizes(), ())

    def idle_s(self, images: int) -> float | None:
        """Return how long a request takes of an idle engine; None while nothing is known."""
        return None if self._alone.line is None else self._alone_s(self._alone, images)

    def refuses(self, images: int, left_s: float) -> float | None:
        """Return `idle_s` if not even an idle engine makes it in the time that is left, else None; see `Pace.refuses`."""
        predicted_s = self.idle_s(images)
        largest = min(images, self._max_batch)
        if predicted_s is None or not self._alone.refuses(largest, predicted_s, left_s):
            return None
        return predicted_s

    def is_late(self, images: int, predicted_s: float, left_s: float) -> bool:
        """Say whether the queue is too long for the time that is left of a request.

        Where nobody else waits or runs, the queue is never too long; whether an idle engine is quick enough
        is for `refuses` to say, which now and then lets somebody through.

        Args:
            predicted_s: what `request_s` said.
        """
        alone_s = self._alone_s(self._pace, images)
        own_s = self._alone.trust * (self.idle_s(images) or 0.0)
        return max(0.0, predicted_s - alone_s) + own_s > left_s

    def running(self) -> list[float]:
        """See `Queue.running`; a pass that takes longer than expected is expected to end now."""
        now_s, shared_s = time.perf_counter(), self._slots.shared_s
        return [
            max(0.0, self._pace.seconds_for(images) - (now_s - began_s if self._apart else shared_s - began_shared_s))
            for images, began_s, began_shared_s in self._begun.values()
        ]  # fmt: skip

    def upcoming(self) -> list[float]:
        """See `Queue.upcoming`."""
        return [self._pace.seconds_for(size) for size in self._sizes()]

    def close(self) -> None:
        """Compete for places no more; more than once does no harm."""
        if self in self._slots.queues:
            self._slots.queues.remove(self)

    def _others_waiting(self) -> Iterator[Sequence[float]]:
        return (queue.upcoming() for queue in self._slots.queues if queue is not self)

    def _lingers_s(self, images: int) -> float:
        return self._delay_s if images < self._max_batch else 0.0

    def _sizes(self) -> list[int]:
        """Return the sizes of the passes that make what waits."""
        waiting = self._waiting()
        if self._apart:
            return [size for rows in waiting for size in _cut(rows, self._max_batch)]
        return _cut(sum(waiting), self._max_batch)

    def _alone_s(self, pace: Pace, images: int) -> float:
        """Return how long a request takes if nobody else asks, at this pace."""
        works = [pace.seconds_for(size) for size in _cut(images, self._max_batch)]
        if len(works) == 1:
            return works[0] + self._lingers_s(images)
        return completed_s((), works, None, self._slots.places, not self._apart)

    def _completed_s(self, own: Sequence[int], later: Sequence[int]) -> float | None:
        """Return when the passes of the sizes `own` are made, with those of other queues between them."""
        if self.line is None:
            return None
        others = [queue for queue in self._slots.queues if queue is not self]
        running = [*self.running(), *chain.from_iterable(queue.running() for queue in others)]
        works = [self._pace.seconds_for(size) for size in (*own, *later)]
        mixed = list(_in_turn(works, [*self._others_waiting()]))
        places = [at for at, (is_own, _) in enumerate(mixed) if is_own]
        order = [work for _, work in mixed] if own else []
        last = places[len(own) - 1] if own else None
        return completed_s(running, order, last, self._slots.places, not self._apart)


def turns(
    waiting: Sequence[int], images: int, max_batch: int, apart: bool
) -> tuple[list[int], list[int]]:
    """Return the sizes of the passes until the last image of a request is in one, and of the passes after.

    Requests take turns: image by image, so that until it has had its own every other request has had as many, or all
    that it wants; with `apart`, pass by pass.

    Args:
        waiting: images of each request that waits already.
    """
    if apart:
        own = _cut(images, max_batch)
        cuts = [_cut(rows, max_batch) for rows in waiting]
        before = [size for cut in cuts for size in cut[: len(own)]]
        return before + own, [size for cut in cuts for size in cut[len(own) :]]
    taken = images + sum(min(rows, images) for rows in waiting)
    sizes = _cut(images + sum(waiting), max_batch)
    count = -(-taken // max_batch)
    return sizes[:count], sizes[count:]


def completed_s(
    running: Sequence[float], works: Sequence[float], last: int | None, places: int, shared: bool
) -> float:
    """Return after how many seconds the pass at position `last` of `works` is done; with None, everything is.

    Args:
        running: what is left of the passes under way.
        works: of passes that begin in this order, whenever there is a place.
        shared: whether passes side by side share one machine evenly, or each has one.
    """
    ends = [(work, -1) for work in running]
    heapq.heapify(ends)
    upcoming = deque(enumerate(works))
    reached_s = seconds = 0.0  # on the clock of one pass, and of the world
    while ends or upcoming:
        while upcoming and len(ends) < places:
            at, work = upcoming.popleft()
            heapq.heappush(ends, (reached_s + work, at))
        end_s, at = heapq.heappop(ends)
        seconds += (end_s - reached_s) * (len(ends) + 1 if shared else 1)
        reached_s = end_s
        if at == last:
            break
    return seconds


def _cut(rows: int, size: int) -> list[int]:
    return [size] * (rows // size) + ([rows % size] if rows % size else [])


def _in_turn(
    own: Sequence[float], others: Sequence[Sequence[float]]
) -> Iterator[tuple[bool, float]]:
    """Yield the works of all queues as their turns come, and whether they are `own`; those of others come first."""
    for works in zip_longest(*others, own):
        for at, work in enumerate(works):
            if work is not None:
                yield at == len(others), work
