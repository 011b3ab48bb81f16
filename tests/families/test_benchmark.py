"""Operations of the families' largest models are counted right, and compared with CAT's."""

from __future__ import annotations

import pytest

from benchmarks.families import SHAPES, cat_config, compare, main, operations


def test_operations_are_counted_as_by_hand() -> None:
    """DiT-XL/2 has 118.6 G multiply-adds in its paper; iMF-XL/2's are summed here, layer by layer."""
    dit = SHAPES["alphaflow"]
    assert operations(dit.config("alphaflow", 28)) / 2e9 == pytest.approx(118.6, rel=0.002)
    width, hidden, tokens, blocks = 1024, 8 * 1024 // 3, 276, 48
    linear = tokens * (4 * width**2 + 3 * width * hidden)
    attention = 2 * tokens**2 * width
    ends = 256 * width * 16 + 256 * width * 16
    counted = operations(SHAPES["imf"].config("imf", blocks)) / 2
    assert counted == blocks * (linear + attention) + ends


def test_repeated_blocks_are_counted_as_often_as_they_run() -> None:
    once, twice = (operations(SHAPES[f].config(f, 28)) for f in ("advflow", "advflow-deep"))
    assert 1.95 < twice / once < 2


def test_a_comparison_says_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(SHAPES, "facm", replace(SHAPES["facm"], width=64, heads=4, side=4, depth=4))
    row = compare("facm", 4, 2, lambda: 0.5)
    assert row["cat_gflops_per_s"] == pytest.approx(operations(cat_config(4)) / 0.5 / 1e9, rel=0.01)
    assert row["gflops_per_s"] > 0
    assert len(row["ratios"]) == 2


@pytest.mark.parametrize("flags", [["--depth", "6"], ["--rounds", "0"]])
def test_numbers_that_mean_nothing_are_usage_errors(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert flags[0] in capsys.readouterr().err
