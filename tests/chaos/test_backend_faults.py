"""Real Triton servers that are killed, stalled, or come back as something else, while clients ask."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.chaos.faults import faults
from benchmarks.chaos.results import Result
from benchmarks.chaos.triton import OF_ALL, OF_ONE

pytestmark = pytest.mark.slow


def assert_survived(result: Result, count: int) -> None:
    assert [promise for promise in result.promises if not promise.held] == []
    assert (result.faults, result.lost) == (count, 0)


def test_one_server_that_fails_is_said_so_and_is_used_again() -> None:
    """While it is gone every request hears why; while it is merely slow none does."""
    result = asyncio.run(faults(1, rounds=1))
    assert_survived(result, len(OF_ONE))
    told = {fault["fault"]: fault["told why not"] for fault in result.figures["faults"]}
    assert told.pop("stopped for a moment") == 0
    assert min(told.values()) > 0


def test_one_of_two_servers_that_fails_costs_no_request() -> None:
    result = asyncio.run(faults(2, rounds=1))
    assert_survived(result, len(OF_ONE) + len(OF_ALL))
    told = {fault["fault"]: fault["told why not"] for fault in result.figures["faults"]}
    assert {told.pop(name) > 0 for name in OF_ALL} == {True}
    assert set(told.values()) == {0}
