"""A soak holds its promises, and breaks them when something leaks."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import pytest

from benchmarks.chaos.load import Answer, Tally
from benchmarks.chaos.results import Result
from benchmarks.chaos.soak import Plan, errors_in, growth_limit, soak
from benchmarks.chaos.traffic import MIXED, Ask
from benchmarks.chaos.watching import Sample

SECONDS = 20.0

LEAKS = {
    "memory that a request costs for good, upper end of the 96 % interval": """
        kept = []
        async def leaking(self, scope, receive, send, own=RequestId.__call__):
            kept.append(b"x" * 400_000)
            await own(self, scope, receive, send)
    """,
    "asyncio tasks afterwards": """
        kept = set()
        async def leaking(self, scope, receive, send, own=RequestId.__call__):
            kept.add(asyncio.create_task(asyncio.sleep(3600)))
            await own(self, scope, receive, send)
    """,
    "open files afterwards": """
        kept = []
        async def leaking(self, scope, receive, send, own=RequestId.__call__):
            kept.append(open("/dev/null"))
            await own(self, scope, receive, send)
    """,
}
LEAKY_SERVER = """
import asyncio, sys
from cat_serve.cli import main
from cat_serve.web.middleware import RequestId
{leak}
RequestId.__call__ = leaking
sys.exit(main(sys.argv[1:]))
"""


def broken(result: Result) -> list[str]:
    return [promise.what for promise in result.promises if not promise.held]


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_leaks_under_mixed_load() -> None:
    result = asyncio.run(soak(Plan(SECONDS)))
    assert broken(result) == [], result.promises
    assert result.lost == 0
    assert result.figures["kinds"].keys() >= {"one image", "several images", "bad", "left", "GET"}
    assert result.requests >= 50


@pytest.mark.slow
@pytest.mark.parametrize("promise", LEAKS)
def test_planted_leak_is_found(promise: str, tmp_path: Path) -> None:
    script = tmp_path / "leaky.py"
    script.write_text(LEAKY_SERVER.format(leak=textwrap.dedent(LEAKS[promise])))
    result = asyncio.run(soak(Plan(SECONDS, command=(str(script),))))
    assert promise in broken(result), result.promises


@pytest.mark.parametrize(("requests", "limit"), [(100, 80_000), (10_000, 800), (10**6, 256)])
def test_the_longer_a_soak_the_less_may_be_left_behind(requests: int, limit: float) -> None:
    samples = [Sample(0.0, share * requests // 5, 0, 0, 0, 0) for share in range(11)]
    assert growth_limit(samples) == pytest.approx(limit, rel=1e-3)


def test_tally_finds_wrong_statuses_failed_connections_and_other_bytes() -> None:
    tally = Tally(excused=frozenset({503}))
    ask = Ask("one image", "POST", "/generate?class=1", same=True)
    for status, digest in ((200, "a"), (200, "a"), (503, ""), (500, ""), (None, ""), (200, "b")):
        tally.add(Answer(ask, 0, 1, status, digest, "reset"))
    assert tally.requests == 6
    assert [text.rpartition(" ")[2] for text in tally.lost] == ["500", "reset"]
    assert len(tally.wrong_bytes) == 1


def test_mix_has_good_bad_slow_and_leaving_clients() -> None:
    assert {maker.__name__ for maker in MIXED} >= {"one", "bad", "slow", "left", "interpolation"}


def test_errors_are_found_in_a_log() -> None:
    log = "fine\nTraceback (most recent call last):\n  File x\nValueError: no\nfine\n"
    assert errors_in(log) == ["ValueError: no"]
    assert errors_in("fine\n") == []
