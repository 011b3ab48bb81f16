"""A Triton server that lies while eight clients ask: nobody gets a wrong picture, and an honest server beside it is enough."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.chaos.liars import lying
from benchmarks.chaos.lies import ENOUGH, LIES
from benchmarks.chaos.results import Result

pytestmark = pytest.mark.slow


def assert_survived(result: Result) -> dict[str, int]:
    """Return how many requests were told why they got no picture, by lie."""
    assert [promise for promise in result.promises if not promise.held] == []
    assert (result.faults, result.lost) == (len(LIES), 0)
    return {fault["fault"]: fault["told why not"] for fault in result.figures["faults"]}


def test_lies_of_the_only_server_are_told_and_it_is_used_again() -> None:
    told = assert_survived(asyncio.run(lying(1)))
    # Whoever waits when the load ends is not counted: on a slow machine that may be all whom a lie was told.
    assert sum(count > 0 for count in told.values()) > len(LIES) // 2


def test_lies_of_one_of_two_servers_cost_no_request_but_those_of_bad_pictures() -> None:
    told = assert_survived(asyncio.run(lying(2)))
    assert {name for name, count in told.items() if count} <= {
        "pictures with NaN",
        "black pictures",
    }


def test_picture_that_changed_is_noticed() -> None:
    """That nobody got a wrong picture means something: pictures that merely look right are found by their bytes."""

    def inverted(answer: object, context: object) -> object:
        raw = bytes(255 - level for level in answer.raw_output_contents[0])  # type: ignore[attr-defined]
        answer.raw_output_contents[0] = raw  # type: ignore[attr-defined]
        return answer

    told = replace(LIES["black pictures"], change=inverted, two_faced=True, least=ENOUGH)
    result = asyncio.run(lying(1, {"inverted": told, "black pictures": LIES["black pictures"]}))
    broken = {promise.what for promise in result.promises if not promise.held}
    assert broken == {"images that differ from those before the fault"}
