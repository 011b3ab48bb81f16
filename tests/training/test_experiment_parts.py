"""The experiment's plan, rule, table and plots, held to numbers made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_serve.errors import CheckpointError, InvalidInput, TrainingDiverged
from training.experiment import plots
from training.experiment.measuring import Protocol
from training.experiment.plan import ARMS, PLAN, Planned, catalogue, choose, marks
from training.experiment.running import Experiment, rows_of
from training.experiment.summary import arms, contrasts, flat, result, verdict
from training.experiment.table import tables
from training.options import resolve_config
from training.train import build_parser

MARKS = (10, 20, 30, 40)
A, B, C = ("small-cat-0", "small-lambda-0-0", "small-aggregated-0")
PLACES = (Path("d"), Path("v"), Path("o"))


def stages(*means: float | None) -> list[dict[str, Any]]:
    return [{"k": k, "mean": mean} for k, mean in enumerate(means, start=1)]


def row(mark: int, fd: float, direction: float = 0.5, **more: float) -> dict[str, Any]:
    diagnostics = {
        "distance": stages(0.4, 0.2), "rewrite": stages(0.3, 0.2), "direction": stages(direction, 1.0),
    }  # fmt: skip
    figures = {"fd": fd, "recognised": 0.75, **more, "diagnostics": diagnostics}
    log = {"d_adv": 0.5, "margin": 0.25}
    return {"mark": mark, "figures": figures, "log": log, "training_hours": 0.5, "commit": "abc"}


def rows(*fds: float, direction: float = 0.5) -> list[dict[str, Any]]:
    return [row(mark, fd, direction) for mark, fd in zip(MARKS, fds, strict=False)]


# the last three marks: CAT 20 and 22, lambda = 0 at 30 and 26, aggregated 21.5
RUNS = {
    Planned("small", "cat", 0): rows(90, 21, 19, 20, direction=0.9),
    Planned("small", "cat", 1): rows(90, 22, 22, 22, direction=0.8),
    Planned("small", "lambda-0", 0): rows(90, 33, 30, 27, direction=0.6),
    Planned("small", "lambda-0", 1): rows(90, 26, 26, 26, direction=0.85),
    Planned("small", "aggregated", 0): rows(90, 21.5, 21.5, 21.5),
    Planned("large", "cat", 0): rows(90, 10, 10, 10),
    Planned("large", "lambda-0", 0): rows(90, 14.5, 14.5, 14.5, direction=0.2),
}


def report_of(runs: Mapping[Planned, Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Any], list]:
    results = [found for run, made in runs.items() if (found := result(run, made, MARKS))]
    listed = [
        {"run": run.name, "size": run.size, "arm": run.arm, "seed": run.seed, "diverged": None, "rows": made}
        for run, made in runs.items()
    ]  # fmt: skip
    report = {
        "marks": MARKS, "protocol": Protocol().to_dict(), "floor": {"fd": 3.25}, "runs": listed,
        "arms": arms(results), "contrasts": contrasts(results),
    }  # fmt: skip
    return report, results


# --- the plan ------------------------------------------------------------------------------------


def test_the_plan_is_the_one_that_was_written_down() -> None:
    seeds: dict[tuple[str, str], set[int]] = {}
    for size, arm, seed in PLAN:
        seeds.setdefault((size, arm), set()).add(seed)
    assert seeds == {
        ("small", "cat"): {0, 1}, ("small", "lambda-0"): {0, 1}, ("small", "aggregated"): {0},
        ("large", "cat"): {0}, ("large", "lambda-0"): {0},
    }  # fmt: skip
    assert [run.name for run in choose(None)][:3] == [A, B, C]


@pytest.mark.parametrize("run", catalogue(), ids=lambda run: run.name)
def test_a_run_differs_from_cat_in_what_its_arm_says(run: Planned) -> None:
    """And in nothing else; seen in the configuration that the command line leads to."""
    flags = run.flags(*PLACES, 40, 10)
    reference = Planned(run.size, "cat", run.seed).flags(*PLACES, 40, 10)
    mine, cat = (
        resolve_config(build_parser().parse_args(each), None).to_dict()
        for each in (flags, reference)
    )
    changed = {
        f"{key}.{name}" if isinstance(mine[key], dict) else key: value
        for key in mine if mine[key] != cat[key]
        for name, value in (mine[key].items() if isinstance(mine[key], dict) else [("", mine[key])])
        if not isinstance(mine[key], dict) or value != cat[key][name]
    }  # fmt: skip
    assert changed == {
        "cat": {}, "lambda-0": {"consistency.weight": 0},
        "aggregated": {"discriminator.attention": "aggregated", "consistency.weight": 0},
        "lambda-0.03": {"consistency.weight": 0.03}, "lambda-0.3": {"consistency.weight": 0.3},
        "lambda-1": {"consistency.weight": 1}, "detach": {"consistency.detach_anchor": True},
        "at-scale": {"consistency.at_scale": True}, "uniform": {"consistency.omegas": "uniform"},
        "bilinear": {"resize": "bilinear"},
    }[run.arm]  # fmt: skip
    assert (mine["label_weight"], mine["lr_decay_nimg"], mine["gamma_final"]) == (0, 0, None)
    assert mine["seed"] == run.seed
    assert mine["total_nimg"] == 40


def test_runs_are_chosen_by_arm_by_size_and_by_name() -> None:
    assert {run.name for run in choose(["large", B])} == {"large-cat-0", "large-lambda-0-0", B}
    assert [run.name for run in choose(["aggregated"])] == [C]
    assert [run.name for run in choose(["detach"])] == ["small-detach-0"]
    assert len({run.name for run in catalogue()}) == len(catalogue()) == len(PLAN) + len(ARMS) - 3
    with pytest.raises(InvalidInput, match="no 'lambda'"):
        choose(["cat", "lambda"])


@pytest.mark.parametrize(("total", "every"), [(100, 30), (10, 30), (30, 0), (0, 10)])
def test_a_run_that_ends_between_marks_is_refused(total: int, every: int) -> None:
    assert marks(90, 30) == (30, 60, 90)
    with pytest.raises(InvalidInput, match="cannot be measured"):
        marks(total, every)


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cat", "control", "claimed", "noise", "expected"),
    [
        ([1, 2], [4, 5], -1, 1, "as claimed"),
        ([1, 2], [4, 5], 1, 1, "the other way"),
        ([4, 5], [1, 2], 1, 1, "as claimed"),
        ([4, 5], [1, 2], -1, 1, "the other way"),
        ([1, 2], [2.5, 3.5], -1, 2, "not decided"),  # a seed moves it as much
        ([1, 5], [4, 9], -1, 0.5, "not decided"),  # they overlap
        ([1], [5], -1, None, "not decided"),  # nobody knows what a seed does
        ([1], [5], -1, 2, "as claimed"),
    ],
)
def test_what_is_decided(
    cat: list[float], control: list[float], claimed: int, noise: float | None, expected: str
) -> None:
    assert verdict(cat, control, claimed, noise) == expected


def test_a_run_counts_by_the_mean_of_its_last_three_marks() -> None:
    run, made = next(iter(RUNS.items()))
    found = result(run, made, MARKS)
    assert found is not None
    assert (found.values["fd"], found.wander) == (20, 2)
    assert result(run, made[:3], MARKS) is None
    early = result(run, made[:2], MARKS[:2])
    assert early is not None
    assert early.values["fd"] == (90 + 21) / 2


def test_of_the_diagnostics_counts_what_informs() -> None:
    """a_{K-1} is 1 and r_{K-1} is d_{K-1} by definition; a stage without any value is none."""
    assert set(flat(row(1, 2)["figures"])) == {"fd", "recognised", "d_1", "d_2", "r_1", "a_1"}
    assert "a_1" not in flat(row(1, 2, direction=None)["figures"])  # type: ignore[arg-type]


def test_contrasts_are_those_made_by_hand() -> None:
    report, _ = report_of(RUNS)
    found = {(each["size"], each["control"], each["figure"]): each for each in report["contrasts"]}
    fd = found["small", "lambda-0", "fd"]
    assert (fd["cat"], fd["control_values"]) == ([20, 22], [30, 26])
    assert (fd["difference"], fd["spread"], fd["verdict"]) == (-7, 4, "as claimed")
    other = found["small", "aggregated", "fd"]
    assert (other["difference"], other["spread"], other["verdict"]) == (-0.5, 2, "not decided")
    borrowed = found["large", "lambda-0", "fd"]
    assert (borrowed["difference"], borrowed["spread"], borrowed["spread_of"]) == (-4.5, 4, "small")
    assert borrowed["verdict"] == "as claimed"
    direction = found["small", "lambda-0", "a_1"]
    assert direction["verdict"] == "not decided"  # 0.8 < 0.85
    assert ("large", "aggregated", "fd") not in found


def test_arms_are_means_with_the_least_and_the_greatest() -> None:
    report, _ = report_of(RUNS)
    cat = report["arms"][0]
    assert (cat["size"], cat["arm"], cat["seeds"]) == ("small", "cat", [0, 1])
    assert cat["figures"]["fd"] == {"mean": 21, "low": 20, "high": 22}


# --- tables and plots ----------------------------------------------------------------------------


def test_tables_hold_these_numbers() -> None:
    text = tables(*report_of(RUNS))
    assert "| small-cat-0 | 40 | 90.0, 21.0, 19.0, 20.0 | 2.00 | 0.500, 0.25 | 0.50 | abc |" in text
    assert "| CAT | 0, 1 | 21.00 [20.00, 22.00] | 75.0% | 0.4000 |" in text
    assert "| small | scale-wise, lambda = 0 | fd | -7 | 4 (small) | as claimed |" in text
    assert "an FD of 3.25" in text


def test_tables_say_what_is_not_finished_and_what_diverged() -> None:
    report, results = report_of({Planned("small", "cat", 0): rows(90, 21)})
    report["runs"].append({"run": "small-cat-1", "rows": [], "diverged": {"mark": 10}})
    text = tables(report, results)
    assert "| small-cat-0 | 20 | 90.0, 21.0 | not finished |" in text
    assert "| small-cat-1 | diverged |" in text


def test_plots_have_a_line_for_every_run_and_a_row_for_every_size(tmp_path: Path) -> None:
    report, _ = report_of(RUNS)
    assert plots.draw(report["runs"], report["floor"], tmp_path) == ["course.png", "stages.png"]
    for name, columns in (("course.png", 2), ("stages.png", 3)):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert picture.shape[1] == pytest.approx(100 * 3.7 * columns, abs=2)
        for arm in range(3):
            colour = plots.COLOURS[arm]
            wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
            upper, lower = np.split(picture[:-60], [int(100 * 3.2)])
            assert (upper == wanted).all(axis=2).sum() > 20
            drawn_below = (lower[:300] == wanted).all(axis=2).sum() > 20
            assert drawn_below == (arm < 2)  # no aggregated run is large
    assert plots.draw([{**report["runs"][0], "rows": []}], {}, tmp_path) == []


# --- what runs are held to -----------------------------------------------------------------------


def test_rows_of_another_protocol_are_refused(tmp_path: Path) -> None:
    planned = Planned("small", "cat", 0)
    folder = tmp_path / planned.name / "measured"
    folder.mkdir(parents=True)
    made = {**row(10, 1.0), "protocol": Protocol(samples=100).to_dict()}
    (folder / "000000010.json").write_text(json.dumps(made))
    assert rows_of(tmp_path, planned, Protocol(samples=100)) == [made]
    with pytest.raises(InvalidInput, match="was measured with"):
        rows_of(tmp_path, planned, Protocol(samples=200))


@pytest.mark.parametrize("wrong", [{"samples": 5}, {"photographs": 5}, {"metrics": ("pairs",)}])
def test_measurements_that_say_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Protocol(**wrong)


def test_a_run_that_diverges_is_noted_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[object] = []

    def diverge(arguments: object) -> None:
        tried.append(arguments)
        raise TrainingDiverged("The generator's gradient is not finite after 128 images.")

    monkeypatch.setattr("training.train.work", diverge)
    experiment = Experiment(tmp_path, *PLACES[:2], MARKS, 10, Protocol(), lambda _: {})
    for _ in range(2):
        experiment.run(Planned("small", "cat", 0))
    assert len(tried) == 1
    note = json.loads((tmp_path / "small-cat-0" / "diverged.json").read_text())
    assert note["mark"] == 10
    assert "not finite after 128 images" in note["message"]
    assert "left as it is" in capsys.readouterr().err


def test_a_checkpoint_that_has_gone_beyond_the_mark_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Checkpoint:
        training = {"nimg": 80, "seconds": 1.0, "config": {"batch_size": 8}}  # noqa: RUF012

    monkeypatch.setattr("training.train.work", lambda _: {})
    monkeypatch.setattr("cat_serve.model.checkpoint.load_checkpoint", lambda _: Checkpoint)
    experiment = Experiment(tmp_path, *PLACES[:2], MARKS, 10, Protocol(), lambda _: {"fd": 1.0})
    with pytest.raises(CheckpointError, match="has seen 80 images"):
        experiment.run(Planned("small", "cat", 0))
    assert not list(tmp_path.rglob("*.json"))
