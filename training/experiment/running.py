"""Train and measure: every run in a folder of its own, mark by mark; what is there is not made again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cat_serve.errors import CheckpointError, InvalidInput, TrainingDiverged
from cat_serve.files import write_text
from training.experiment.measuring import Protocol
from training.experiment.plan import Planned

ROWS = "measured"  # folder of a run with one file for each mark
DIVERGED = "diverged.json"

Row = dict[str, Any]
Measure = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """Where the runs are, what they train on, and how they are measured.

    A run that is measured at every mark is done, whatever else of it is still there. An unfinished one needs
    `state.pt` to go on, and begins anew without it.

    Attributes:
        out: folder of all runs.
        marks: numbers of images at which runs are measured, in order.
        every_nimg: images between them.
        measure: takes a checkpoint and returns its figures.
    """

    out: Path
    data: Path
    vae: Path
    marks: tuple[int, ...]
    every_nimg: int
    protocol: Protocol
    measure: Measure

    def run(self, planned: Planned) -> None:
        """Train to each mark and measure there. A run that diverges is noted, and not tried again."""
        folder = self.out / planned.name
        if (folder / DIVERGED).exists():
            print(f"{planned.name} has diverged: left as it is", file=sys.stderr)
            return
        there = rows_of(self.out, planned, self.protocol)
        for mark in self.marks:
            if any(row["mark"] == mark for row in there):
                continue
            try:
                self._train(planned, mark)
            except TrainingDiverged as error:
                note = {"mark": mark, "message": error.message}
                write_text(folder / DIVERGED, json.dumps(note) + "\n")
                print(f"{planned.name} diverges: {error.message}", file=sys.stderr)
                return
            self._measure(planned, mark)

    def _train(self, planned: Planned, mark: int) -> None:
        from training.train import build_parser, work

        flags = planned.flags(self.data, self.vae, self.out, mark, self.every_nimg)
        print(f"{planned.name} to {mark:,} images", file=sys.stderr)
        work(build_parser().parse_args(flags))

    def _measure(self, planned: Planned, mark: int) -> None:
        from cat_serve.files import sha256_of
        from cat_serve.model.checkpoint import load_checkpoint

        folder = self.out / planned.name
        checkpoint = folder / f"{planned.preset}.safetensors"
        training = load_checkpoint(checkpoint).training
        nimg, batch = training["nimg"], training["config"]["batch_size"]
        if not mark <= nimg < mark + batch:
            raise CheckpointError(
                f"{checkpoint} has seen {nimg:,} images, and {mark:,} are to be measured.",
                hint=f"the run has gone beyond: remove {folder} to begin it again",
            )
        row = {
            "run": planned.name, "size": planned.size, "arm": planned.arm, "seed": planned.seed, "mark": mark,
            "nimg": nimg, "training_hours": round(training["seconds"] / 3600, 3),
            "protocol": self.protocol.to_dict(), "figures": dict(self.measure(checkpoint)),
            "log": _last_line(folder / "log.jsonl"), "checkpoint_sha256": sha256_of(checkpoint),
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "commit": commit(),
            "command": planned.command(self.data, self.vae, self.out, mark, self.every_nimg),
        }  # fmt: skip
        write_text(folder / ROWS / f"{mark:09d}.json", json.dumps(row, indent=1) + "\n")


def rows_of(out: Path, planned: Planned, protocol: Protocol) -> list[Row]:
    """Return what was measured of a run, by images seen.

    Raises:
        InvalidInput: it was measured in another way.
    """
    rows: list[Row] = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / planned.name / ROWS).glob("*.json"))
    ]
    for row in rows:
        if row["protocol"] != protocol.to_dict():
            raise InvalidInput(
                f"{planned.name} was measured with {row['protocol']}, not {protocol.to_dict()}.",
                hint="give the same --samples, --photographs and --metrics, or another --out",
            )
    return rows


def diverged(out: Path, planned: Planned) -> dict[str, Any] | None:
    """Return what is noted of a run that diverged; None of any other."""
    path = out / planned.name / DIVERGED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _last_line(log: Path) -> dict[str, Any]:
    """Return the last line of a run's log; empty where it was left behind."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return json.loads(lines[-1]) if lines else {}


def commit() -> str | None:
    """Return the commit of the code that runs; None outside a repository, `+` at its end if files differ from it."""
    here = Path(__file__).parent
    try:
        known = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return known.stdout.strip() or None
