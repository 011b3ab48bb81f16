"""Put CAT's claims to the test: the same runs with and without what it adds, measured alike, one after the other.

    python -m training.experiment --data data/experiment --vae checkpoints/fashion-32.vae
    python -m training.experiment --only small-cat-0 small-lambda-0-0
    python -m training.experiment --dry-run

Every run is one of `training.train`, in a folder of its own; it is measured each 25,600 images. Interrupted, the same
command goes on. Writes experiment.json, tables (experiment.md, also printed), course.png (figures over images seen) and
stages.png (distance, rewrite and direction of every stage) to --out after every run. docs/experiments/cat-claims.md says
what was to be shown, and how it is judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.experiment.plan import MARK_NIMG, TOTAL_NIMG, Planned, catalogue, choose, marks

if TYPE_CHECKING:
    from training.experiment.measuring import Meter
    from training.experiment.running import Experiment

KEPT = "kept"  # what is the same for all runs and takes long; may be removed


def build_parser() -> argparse.ArgumentParser:
    from training.experiment.measuring import METRICS, PHOTOGRAPHS, SAMPLES
    from training.fashion_mnist import DEFAULT_FOLDER

    parser = argparse.ArgumentParser(prog="python -m training.experiment", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/experiment"), help="latents made by training.prepare (default: %(default)s)")  # fmt: skip
    add("--vae", type=Path, default=Path("checkpoints/fashion-32.vae"), help="the VAE that made them (default: %(default)s)")  # fmt: skip
    add("--images", type=Path, default=DEFAULT_FOLDER, help="folder of Fashion-MNIST's files, to measure against")  # fmt: skip
    add("--out", type=Path, default=Path("runs/experiment"), help="default: %(default)s")
    add("--only", nargs="+", metavar="NAME", help="runs to make, by arm (cat, lambda-0, aggregated; follow-ups: lambda-0.03, "
        "lambda-0.3, lambda-1, detach, at-scale, uniform, bilinear), by size (small, large), or each by its name (small-cat-0)")  # fmt: skip
    add("--total-nimg", type=int, default=TOTAL_NIMG, help="images of a run (default: %(default)s)")
    add("--every-nimg", type=int, default=MARK_NIMG, help="images between measurements (default: %(default)s)")  # fmt: skip
    add("--samples", type=int, default=SAMPLES, help="samples of each measurement (default: %(default)s)")  # fmt: skip
    add("--photographs", type=int, default=PHOTOGRAPHS, help="test photographs compared with (default: %(default)s)")  # fmt: skip
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS),
        help="what is measured; recognition trains a classifier first (default: all)")  # fmt: skip
    add("--dry-run", action="store_true", help="train nothing: say runs, commands and cost")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that are asked for, and say what all runs that are there show."""
    a = arguments
    chosen, at = choose(a.only), marks(a.total_nimg, a.every_nimg)
    if a.dry_run:
        return dry_run(a, chosen)
    from training.experiment.measuring import Meter, Protocol
    from training.experiment.running import Experiment

    protocol = Protocol(a.samples, a.photographs, tuple(a.metrics))
    meter = Meter(protocol, a.images, a.out / KEPT)
    experiment = Experiment(a.out, a.data, a.vae, at, a.every_nimg, protocol, meter.measure)
    for planned in chosen:
        experiment.run(planned)
        report, text = conclude(experiment, meter)
    print(text)
    return {"out": str(a.out), **report}


def dry_run(arguments: argparse.Namespace, chosen: Sequence[Planned]) -> dict[str, Any]:
    """Print the commands of the runs; return what they cost."""
    from training.dry_run import Sizes, step_macs
    from training.engine import Runtime
    from training.presets import train_preset

    a, runs = arguments, []
    for planned in chosen:
        print(planned.command(a.data, a.vae, a.out, a.total_nimg, a.every_nimg))
        config = train_preset(planned.preset)
        gflop = 2 * step_macs(Sizes(config), config, Runtime()) / 1e9
        runs.append({"run": planned.name, "stages": config.generator.stages,
                     "gflop_per_image": round(gflop, 3), "gflop": round(gflop * a.total_nimg)})  # fmt: skip
    return {"runs": runs, "images": a.total_nimg * len(runs), "gflop": sum(run["gflop"] for run in runs)}  # fmt: skip


def conclude(experiment: Experiment, meter: Meter) -> tuple[dict[str, Any], str]:
    """Write report, tables and plots of all runs that are there; return the short report and the tables."""
    from cat_serve.files import write_text
    from training.experiment import plots, summary
    from training.experiment.running import diverged, rows_of
    from training.experiment.table import tables

    out, runs, results = experiment.out, [], []
    for planned in catalogue():
        rows = rows_of(out, planned, experiment.protocol)
        failed = diverged(out, planned)
        if not rows and failed is None:
            continue
        row = {"run": planned.name, "size": planned.size, "arm": planned.arm, "seed": planned.seed}
        runs.append({**row, "diverged": failed, "rows": rows})
        if found := summary.result(planned, rows, experiment.marks):
            results.append(found)
    report: dict[str, Any] = {
        "marks": list(experiment.marks), "protocol": experiment.protocol.to_dict(), "floor": meter.floor(),
        "runs": runs, "arms": summary.arms(results), "contrasts": summary.contrasts(results),
    }  # fmt: skip
    write_text(out / "experiment.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "experiment.md", text := tables(report, results))
    pictures = plots.draw(runs, report["floor"], out)
    primary = [row for row in report["contrasts"] if row["figure"] == summary.PRIMARY]
    short = {"finished": [each.planned.name for each in results], "primary": primary, "pictures": pictures}  # fmt: skip
    return short, text


if __name__ == "__main__":
    sys.exit(main())
