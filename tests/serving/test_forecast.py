"""When a request will be done: whose turns come before its own, and which passes run side by side."""

from __future__ import annotations

import time
from collections import deque
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cat_serve.forecast import Forecast, completed_s, turns
from cat_serve.slots import Slots

positive = st.floats(1e-4, 10.0)
queues = st.lists(st.integers(1, 40), max_size=12)


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
