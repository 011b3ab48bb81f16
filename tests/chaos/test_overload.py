"""Overload of a model that takes a while, and the load generator that causes it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.chaos import arrivals
from benchmarks.chaos.overload import Arrivals, _promises, overload
from benchmarks.chaos.servers import ROOT

MODELS = ROOT / "build" / "chaos"


def log(accepted_ms: float, refused_ms: float, refused: int = 300, late_ms: float = 0) -> Arrivals:
    """Return a log of 100 images and some 429s."""
    rows = [[0.0, 0.0, accepted_ms / 1e3, 200]] * 100
    rows += [[0.0, late_ms / 1e3, (late_ms + refused_ms) / 1e3, 429]] * refused
    return Arrivals(rows, 10.0, 0.1)


@pytest.mark.parametrize(
    ("alone", "flood", "lost", "broken"),
    [
        (log(120, 1), log(1400, 40), 0, []),
        (log(90, 1), log(1400, 40), 0, ["time of one image alone, median"]),
        (log(120, 1), log(1600, 40), 0, ["p99 of accepted requests at 10 times, against the queue full at 1 time"]),
        (log(120, 1), log(1400, 60), 0, ["p99 of 429s"]),
        (log(120, 1), log(1400, 40, late_ms=60), 0, []),  # the generator's own delay
        (log(120, 1), log(1400, 40, refused=0), 0, ["p99 of 429s", "share of requests refused at 10 times"]),
        (log(120, 1), log(1400, 40), 1, ["requests without an image or a 429"]),
    ],
)  # fmt: skip
def test_what_counts_as_a_broken_promise(
    alone: Arrivals, flood: Arrivals, lost: int, broken: list[str]
) -> None:
    promises = _promises(alone, log(1000, 1, refused=0), flood, lost)
    assert [promise.what for promise in promises if not promise.held] == broken


def test_generator_keeps_its_rate_whatever_becomes_of_requests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody listens, so all fail; they are sent all the same, when they are due."""
    code = arrivals.main(["http://127.0.0.1:9", "--seconds", "1", "--rate", "200"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    due = [row[0] for row in found["requests"]]
    assert code == 0
    assert 140 < len(due) < 260  # a Poisson number: 200 +- 14
    assert max(due) < 1
    assert {row[3] for row in found["requests"]} == {0}
    assert found["cpu_s"] > 0


@pytest.mark.slow
def test_overload_lengthens_no_queue_and_is_refused_at_once() -> None:
    """The model is made once and kept; that alone takes a minute."""
    result = asyncio.run(overload(40.0, MODELS))
    assert [promise for promise in result.promises if not promise.held] == []
    assert result.lost == 0


def test_model_is_kept_where_git_does_not_look() -> None:
    assert "build/" in Path(ROOT, ".gitignore").read_text().splitlines()
