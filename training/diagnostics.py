"""Do the stages refine one sample, or rewrite it? The three diagnostics of CAT, stage by stage.

    python -m training.diagnostics runs/a/a.safetensors runs/b/b.safetensors --labels "lambda 0.1" "lambda 0"

Runs every checkpoint on the same latents (as many of each class as of any other, seeds 0, 1, 2, ... of each; psi = 1)
and measures on the un-augmented full-grid latents h_1 .. h_K of every sample (arXiv 2605.26449)

* distance to the final stage: d_k = MSE(h_k, h_K), k = 1 .. K-1;
* rewrite magnitude: r_k = MSE(h_k, h_{k+1}), k = 1 .. K-1;
* rewrite direction: a_k = cos(h_{k+1} - h_k, h_K - h_k), k = 1 .. K-1; the last is 1 by definition.

Refinement is a small d and r and a large a. Writes the means with their standard errors and the spread over samples
to diagnostics.json, a table to diagnostics.md and a plot to diagnostics.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cat_serve.model.checkpoint import Checkpoint

BATCH_SIZE = 50
QUANTILES = (0.05, 0.5, 0.95)
Z_95 = 1.96  # of a normal distribution: the interval of a mean over many samples
TITLES = {
    "distance": "distance to final  $d_k$",
    "rewrite": "rewrite magnitude  $r_k$",
    "direction": "rewrite direction  $a_k$",
}


def diagnose(stages: Tensor) -> dict[str, Tensor]:
    """Return d, r and a of every sample: `distance`, `rewrite`, `direction`, each float64 [B, K-1].

    A direction between latents of which one does not move (0 / 0) is NaN.

    Args:
        stages: un-augmented h_1 .. h_K, [B, K, C, H, W], K >= 2.

    Raises:
        InvalidInput: there is one stage alone, which has nothing to agree with.
    """
    if stages.shape[1] < 2:
        raise InvalidInput("A generator with one stage has no diagnostics.", hint="K >= 2")
    h = stages.double().flatten(2)
    step = h[:, 1:] - h[:, :-1]
    rest = h[:, -1:] - h[:, :-1]
    lengths = step.norm(dim=2) * rest.norm(dim=2)
    return {
        "distance": rest.square().mean(dim=2),
        "rewrite": step.square().mean(dim=2),
        "direction": (step * rest).sum(dim=2) / lengths,
    }


def summarise(values: np.ndarray) -> list[dict[str, Any]]:
    """Return for every stage k of samples [N, K-1]: mean, standard error, 95 % interval, spread; NaN left out.

    A stage at which no sample has a value has None everywhere.
    """
    import numpy as np

    rows = []
    for k, column in enumerate(values.T, start=1):
        known = column[~np.isnan(column)]
        row: dict[str, Any] = {"k": k, "samples": len(known)}
        if len(known) < 2:
            rows.append(row | dict.fromkeys(("mean", "standard_error", "std", "ci95", "quantiles")))
            continue
        mean, std = float(known.mean()), float(known.std(ddof=1))
        error = std / len(known) ** 0.5
        quantiles = np.quantile(known, QUANTILES).tolist()
        rows.append(row | {
            "mean": mean, "standard_error": error, "std": std,
            "ci95": [mean - Z_95 * error, mean + Z_95 * error],
            "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        })  # fmt: skip
    return rows


def measure(checkpoint: Checkpoint, per_class: int, label: str) -> dict[str, Any]:
    """Run a checkpoint's generator on `per_class` latents of every class and summarise its diagnostics.

    Raises:
        InvalidInput: the generator is of another family, whose blocks make one image together.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from cat_serve.latents import latents_from_seeds
    from cat_serve.model.generator import Generator

    generator = checkpoint.generator
    if not isinstance(generator, Generator):
        raise InvalidInput(f"{label} has no stages to diagnose.", hint="CAT's and GAT's generators have")  # fmt: skip
    config = generator.config
    parts: list[dict[str, Tensor]] = []
    with (
        torch.inference_mode(),
        tqdm(total=config.num_classes * per_class, unit="img", desc=label) as progress,
    ):
        for class_id in range(config.num_classes):
            for start in range(0, per_class, BATCH_SIZE):
                seeds = range(start, min(start + BATCH_SIZE, per_class))
                z = torch.from_numpy(latents_from_seeds(seeds, config.z_shape))
                y = torch.full((len(seeds),), class_id)
                parts.append(diagnose(generator(z, y, stages=True)))
                progress.update(len(seeds))
    values = {key: np.concatenate([part[key].numpy() for part in parts]) for key in TITLES}
    effort = checkpoint.training
    return {
        "label": label,
        "model": checkpoint.name,
        "training_nimg": effort.get("nimg"),
        "training_hours": round(effort.get("seconds", 0) / 3600, 2),
        "training_seed": effort.get("config", {}).get("seed"),
        "stages": config.stages,
        "scales": list(config.scales),
        "samples": config.num_classes * per_class,
        "seeds": [0, per_class - 1],
        **{key: summarise(rows) for key, rows in values.items()},
    }


def table(models: list[dict[str, Any]]) -> str:
    """Return the means with their standard errors as Markdown: a row per model, a column per figure and stage."""
    most = max(model["stages"] for model in models) - 1
    columns = [(key, k) for key in TITLES for k in range(1, most + 1)]
    letters = {"distance": "d", "rewrite": "r", "direction": "a"}
    lines = [
        "| model | " + " | ".join(f"{letters[key]}_{k}" for key, k in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for model in models:
        cells = [_cell(model[key], k) for key, k in columns]
        lines.append(f"| {model['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]], k: int) -> str:
    if k > len(rows) or rows[k - 1]["mean"] is None:
        return ""
    row = rows[k - 1]
    return f"{row['mean']:.4f} ± {row['standard_error']:.4f}"


def plot(models: list[dict[str, Any]], path: Path) -> None:
    """Draw d, r and a over the stages, a line per model: means, 95 % intervals, and the middle 90 % of samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cat_serve.files import written_whole

    figure, axes = pyplot.subplots(1, len(TITLES), figsize=(12, 3.8), layout="constrained")
    for panel, (key, title) in zip(axes, TITLES.items(), strict=True):
        for model in models:
            _line(panel, [row for row in model[key] if row["mean"] is not None], model["label"])
        panel.set_title(title)
        panel.set_xlabel("stage k")
        panel.set_xticks(range(1, max(model["stages"] for model in models)))
        panel.grid(alpha=0.3)
        if key != "direction":
            panel.set_ylim(bottom=0)
    axes[0].legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


def _line(panel: Any, rows: list[dict[str, Any]], label: str) -> None:
    k = [row["k"] for row in rows]
    means = [row["mean"] for row in rows]
    errors = [Z_95 * row["standard_error"] for row in rows]
    line = panel.errorbar(k, means, errors, marker="o", capsize=3, label=label)
    low, high = ([row["quantiles"][str(q)] for row in rows] for q in (QUANTILES[0], QUANTILES[-1]))
    panel.fill_between(k, low, high, alpha=0.12, color=line[0].get_color(), linewidth=0)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.diagnostics", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("checkpoints", type=Path, nargs="+", help="one, or several to be compared")
    parser.add_argument("--labels", nargs="+", help="what the lines are called (default: file names)")  # fmt: skip
    parser.add_argument("--samples", type=int, default=1000,
                        help="samples of each model, at least; rounded up to as many of every class")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/diagnostics"))
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train", resumes=False)


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every checkpoint, write the files, print the table.

    Raises:
        InvalidInput: labels and checkpoints are not as many, or there are fewer than two samples.
    """
    from cat_serve.files import write_text
    from cat_serve.model.checkpoint import load_checkpoint

    a = arguments
    labels = a.labels or [path.stem for path in a.checkpoints]
    if len(labels) != len(a.checkpoints):
        raise InvalidInput(f"{len(labels)} labels for {len(a.checkpoints)} checkpoints.", hint="give each one")  # fmt: skip
    if a.samples < 2:
        raise InvalidInput(f"--samples {a.samples} has no spread.", hint="2 or more")
    started = time.monotonic()
    models = []
    for path, label in zip(a.checkpoints, labels, strict=True):
        checkpoint = load_checkpoint(path)
        per_class = -(-a.samples // checkpoint.generator.config.num_classes)
        models.append(measure(checkpoint, per_class, label))
    report = {"models": models, "seconds": round(time.monotonic() - started, 1)}
    a.out.mkdir(parents=True, exist_ok=True)
    plot(models, a.out / "diagnostics.png")
    write_text(a.out / "diagnostics.md", text := table(models))
    write_text(a.out / "diagnostics.json", json.dumps(report, indent=1) + "\n")
    print(text)
    return report


if __name__ == "__main__":
    sys.exit(main())
