"""What the runs say: one number for each run and figure, what seeds change of it, and how arms differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.experiment.plan import CAT, CONTROLS, SIZES, Planned

LAST = 3  # marks whose mean is the figure of a run
PRIMARY = "fd"
LOWER, HIGHER = -1, 1
# figure -> where the claim puts CAT, against both controls; of the diagnostics d, r, a every stage that informs
CLAIMED = {
    PRIMARY: LOWER, "precision": HIGHER, "recall": HIGHER, "coverage": HIGHER, "recognised": HIGHER,
    "d": LOWER, "r": LOWER, "a": HIGHER,
}  # fmt: skip
PLAIN = ("fd", "precision", "recall", "density", "coverage", "recognised", "pair_distance")
LETTERS = {"distance": "d", "rewrite": "r", "direction": "a"}

Values = dict[str, float]


@dataclass(frozen=True)
class Result:
    """A run that is measured at all marks.

    Attributes:
        values: each figure's mean over the last three marks.
        wander: the range of the primary metric over those marks.
    """

    planned: Planned
    values: Values
    wander: float


def family(figure: str) -> str:
    """Return `d` of `d_2`, and any other figure as it is."""
    head, _, stage = figure.partition("_")
    return head if stage.isdigit() else figure


def flat(figures: Mapping[str, Any]) -> Values:
    """Return the figures of a mark as plain numbers; d_k and r_k of all stages, a_k without the last, which is 1.

    r_{K-1} is left out too: it is d_{K-1}.
    """
    found = {key: float(figures[key]) for key in PLAIN if key in figures}
    for key, letter in LETTERS.items():
        stages = figures["diagnostics"][key]
        for stage in stages if letter == "d" else stages[:-1]:
            if stage["mean"] is not None:
                found[f"{letter}_{stage['k']}"] = float(stage["mean"])
    return found


def result(
    planned: Planned, rows: Sequence[Mapping[str, Any]], marks: Sequence[int]
) -> Result | None:
    """Return what a run says; None unless it is measured at every mark."""
    measured = {row["mark"]: flat(row["figures"]) for row in rows}
    if not set(marks) <= measured.keys():
        return None
    last = [measured[mark] for mark in marks[-LAST:]]
    shared = [key for key in last[-1] if all(key in row for row in last)]
    means = {key: sum(row[key] for row in last) / len(last) for key in shared}
    primary = [row[PRIMARY] for row in last]
    return Result(planned, means, max(primary) - min(primary))


def arms(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return for every size and arm the mean of each figure over the seeds, and its least and greatest."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.planned.size, each.planned.arm), []).append(each)
    rows = []
    for (size, arm), members in groups.items():
        figures = {}
        for key in members[0].values:
            values = [member.values[key] for member in members if key in member.values]
            figures[key] = {
                "mean": sum(values) / len(values),
                "low": min(values),
                "high": max(values),
            }
        seeds = [member.planned.seed for member in members]
        rows.append({"size": size, "arm": arm, "seeds": seeds, "figures": figures})
    return rows


def spread(results: Sequence[Result], size: str, arm: str, figure: str) -> float | None:
    """Return what another seed changed of a figure of one arm; None with one seed."""
    values = _values(results, size, arm, figure)
    return max(values) - min(values) if len(values) > 1 else None


def contrasts(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Compare CAT with each control at each size, by every figure about which there is a claim; see `verdict`."""
    rows = []
    for size in SIZES:
        for control in CONTROLS:
            own = [r for r in results if (r.planned.size, r.planned.arm) == (size, CAT)]
            if not own or not _values(results, size, control, PRIMARY):
                continue
            for figure in own[0].values:
                if family(figure) in CLAIMED:
                    rows.append(_contrast(results, size, control, figure))
    return rows


def _contrast(results: Sequence[Result], size: str, control: str, figure: str) -> dict[str, Any]:
    cat = _values(results, size, CAT, figure)
    other = _values(results, size, control, figure)
    noise, where = _noise(results, size, control, figure)
    return {
        "size": size, "control": control, "figure": figure, "cat": cat, "control_values": other,
        "difference": sum(cat) / len(cat) - sum(other) / len(other), "spread": noise, "spread_of": where,
        "verdict": verdict(cat, other, CLAIMED[family(figure)], noise),
    }  # fmt: skip


def _noise(
    results: Sequence[Result], size: str, control: str, figure: str
) -> tuple[float | None, str | None]:
    """Return the largest spread of seeds: of these two arms here, else of the same kind of figure at the other size."""
    here = [spread(results, size, arm, figure) for arm in (CAT, control)]
    if known := [value for value in here if value is not None]:
        return max(known), size
    for other in SIZES:
        kinds = {key for r in results for key in r.values if family(key) == family(figure)}
        there = [spread(results, other, arm, key) for arm in (CAT, *CONTROLS) for key in kinds]
        if known := [value for value in there if value is not None]:
            return max(known), other
    return None, None


def _values(results: Sequence[Result], size: str, arm: str, figure: str) -> list[float]:
    return [
        r.values[figure] for r in results
        if (r.planned.size, r.planned.arm) == (size, arm) and figure in r.values
    ]  # fmt: skip


def verdict(
    cat: Sequence[float], control: Sequence[float], claimed: int, noise: float | None
) -> str:
    """Return `as claimed`, `the other way` or `not decided`.

    Decided is what no two seeds contradict, every run of CAT lying on one side of every run of the control, with means
    further apart than seeds alone moved one arm. Without any spread nothing is decided.
    """
    difference = sum(cat) / len(cat) - sum(control) / len(control)
    if noise is None or abs(difference) <= noise:
        return "not decided"
    apart = max(cat) < min(control) if difference < 0 else min(cat) > max(control)
    if not apart:
        return "not decided"
    return "as claimed" if difference * claimed > 0 else "the other way"
