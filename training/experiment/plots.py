"""The plots of the experiment: figures over images seen, and the three diagnostics over the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from training.diagnostics import TITLES
from training.evaluation.pictures import saved_figure
from training.experiment.plan import ARMS, SIZES

COURSE = {
    "fd": "FD-EffNetLite0",
    "recognised": "recognised",
    "precision": "precision",
    "recall": "recall",
}
# Okabe and Ito's colours, which the colour-blind can tell apart; arm after arm
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999", "#8B4513")  # fmt: skip
SEEDS = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
PANEL = (3.7, 3.2)  # inches

Run = Mapping[str, Any]  # of the report: size, arm, seed, rows


def draw(runs: Sequence[Run], floor: Mapping[str, float], out: Path) -> list[str]:
    """Write course.png and stages.png; returns the names of those for which something was measured."""
    measured = [run for run in runs if run["rows"]]
    if not measured:
        return []
    draw_course(measured, floor, out / "course.png")
    draw_stages(measured, out / "stages.png")
    return ["course.png", "stages.png"]


def draw_course(runs: Sequence[Run], floor: Mapping[str, float], path: Path) -> None:
    """Draw figures over images seen: a row of panels for each size, a line for each run; dotted: photographs."""
    shown = [key for key in COURSE if key in runs[0]["rows"][0]["figures"]]
    with _panels(runs, len(shown), path) as (axes, sizes):
        for row, size in enumerate(sizes):
            for panel, key in zip(axes[row], shown, strict=True):
                for run in _of(runs, size):
                    x = [each["mark"] / 1000 for each in run["rows"]]
                    y = [each["figures"][key] for each in run["rows"]]
                    panel.plot(x, y, **_style(run))
                if key in floor:
                    panel.axhline(floor[key], color="grey", linestyle=":", linewidth=1)
                panel.set_title(f"{COURSE[key]} ({size})")
                panel.set_xlabel("thousand images seen")


def draw_stages(runs: Sequence[Run], path: Path) -> None:
    """Draw d, r and a over the stages at each run's last mark: a row of panels for each size, a line for each run."""
    with _panels(runs, len(TITLES), path) as (axes, sizes):
        for row, size in enumerate(sizes):
            for panel, (key, title) in zip(axes[row], TITLES.items(), strict=True):
                for run in _of(runs, size):
                    stages = run["rows"][-1]["figures"]["diagnostics"][key]
                    known = [stage for stage in stages if stage["mean"] is not None]
                    k, means = [s["k"] for s in known], [s["mean"] for s in known]
                    panel.plot(k, means, **_style(run))
                    panel.set_xticks([stage["k"] for stage in stages])
                panel.set_title(f"{title} ({size})")
                panel.set_xlabel("stage k")
                if key != "direction":
                    panel.set_ylim(bottom=0)


@contextmanager
def _panels(
    runs: Sequence[Run], columns: int, path: Path
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield panels, a row for each size that was run, and these sizes; then add one legend, and write the figure."""
    sizes = [size for size in SIZES if any(run["size"] == size for run in runs)]
    extent = (PANEL[0] * columns, PANEL[1] * len(sizes) + 0.5)
    with saved_figure(path, len(sizes), columns, extent) as (figure, axes):
        yield axes, sizes
        lines: dict[str, Any] = {}
        for panel in axes.flat:
            panel.grid(alpha=0.3)
            handles, labels = panel.get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(3, len(lines)))


def _of(runs: Sequence[Run], size: str) -> list[Run]:
    return [run for run in runs if run["size"] == size]


def _style(run: Run) -> dict[str, Any]:
    """Return colour by arm, dash and marker by seed."""
    seed = run["seed"]
    return {
        "color": COLOURS[list(ARMS).index(run["arm"]) % len(COLOURS)],
        "linestyle": SEEDS[seed % len(SEEDS)], "marker": MARKERS[seed % len(MARKERS)], "markersize": 4,
        "label": f"{ARMS[run['arm']].title}, seed {seed}",
    }  # fmt: skip
