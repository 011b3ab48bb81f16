"""The experiment from its first run to its tables, on two dozen drawings; killed, and taken elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.experiment.__main__ import main

ARMS = ("small-cat-0", "small-lambda-0-0", "small-aggregated-0")
CHANGING = ("date", "training_hours", "command", "checkpoint_sha256", "log", "commit")


@pytest.fixture
def command(prepared: Path, vae_folder: Path, idx_folder: Path) -> Callable[..., list[str]]:
    """Two marks of one step each; another folder for every test."""

    def make(out: Path, *more: str, only: tuple[str, ...] = ARMS) -> list[str]:
        return [
            "--data", str(prepared), "--vae", str(vae_folder), "--images", str(idx_folder), "--out", str(out),
            "--total-nimg", "128", "--every-nimg", "64", "--samples", "20", "--photographs", "20",
            "--only", *only, *more,
        ]  # fmt: skip

    return make


def rows(out: Path, run: str) -> list[dict[str, Any]]:
    """Return what was measured of a run, without what is another each time."""
    found = [
        json.loads(path.read_text()) for path in sorted((out / run / "measured").glob("*.json"))
    ]
    for row in found:
        row["figures"].pop("cpu_seconds")
    return [{key: value for key, value in row.items() if key not in CHANGING} for row in found]


@pytest.mark.slow
def test_three_arms_are_trained_measured_and_compared(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(out)) == 0
    printed = capsys.readouterr().out
    short = json.loads(printed.splitlines()[-1])
    assert sorted(short["finished"]) == sorted(ARMS)
    assert [row["verdict"] for row in short["primary"]] == ["not decided"] * 2  # one seed each
    report = json.loads((out / "experiment.json").read_text())
    cat, other, aggregated = ({r["run"]: r for r in report["runs"]}[name]["rows"] for name in ARMS)
    assert [row["mark"] for row in cat] == [row["nimg"] for row in cat] == [64, 128]
    assert cat[0]["figures"]["fd"] > report["floor"]["fd"] > 0
    assert report["floor"]["recognised"] in [n / 10 for n in range(11)]  # of the ten test drawings
    mean = sum(row["figures"]["fd"] for row in cat) / 2
    assert f"| CAT | 0 | {mean:.2f} | " in (out / "experiment.md").read_text()
    assert (out / "experiment.md").read_text() in printed
    assert cat[-1]["log"]["consistency"] > 0
    figures = [row[-1]["figures"]["fd"] for row in (cat, other, aggregated)]
    assert len(set(figures)) == 3
    again = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(command(out)) == 0  # all is there
    assert again == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert json.loads((out / "experiment.json").read_text()) == report


@pytest.mark.slow
def test_killed_and_taken_elsewhere_it_measures_the_same(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Killed after the first measurement; then only that and the state are brought to another folder."""
    whole, cut, moved = (tmp_path / name for name in ("whole", "cut", "moved"))
    run = ARMS[0]
    assert main(command(whole, only=(run,))) == 0
    flags = command(cut, only=(run,))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.experiment", *flags],
            stdout=log, stderr=log, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while len(list(cut.glob("*/measured/*.json"))) < 1:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    assert len(rows(cut, run)) == 1
    (moved / run).mkdir(parents=True)
    shutil.copytree(cut / run / "measured", moved / run / "measured")
    shutil.copy(cut / run / "state.pt", moved / run / "state.pt")
    for place in (cut, moved):
        assert main(command(place, only=(run,))) == 0
        assert rows(place, run) == rows(whole, run)


def test_a_dry_run_says_commands_and_cost_and_writes_nothing(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "out", "--dry-run")) == 0
    *commands, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [run["run"] for run in report["runs"]] == list(ARMS)
    assert report["images"] == 3 * 128
    assert "--attention aggregated --lambda 0 --seed 0" in commands[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--every-nimg", "100"], "cannot be measured every 100"),
        (["--only", "dog"], "no 'dog'"),
        (["--metrics", "pairs"], "primary metric"),
    ],
)
def test_what_makes_no_experiment_is_refused(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str,
) -> None:  # fmt: skip
    assert main(command(tmp_path / "out", *flags)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
