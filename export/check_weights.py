"""Look at what an imported model makes, and write a report to paste: a grid, statistics, parity of the exported graphs.

    python -m export.check_weights checkpoints/imf-xl2-256.safetensors --out build/check-weights

Importers are held to references at small sizes. Whether a published file really is what its importer takes it for, only its
images tell: this makes those of four classes (golden retriever, otter, lesser panda, geyser) at fixed seeds, the same on
every machine but for the order of sums. Exit code 1: a row is not ok, images are constant or do not depend on class or
seed, or an exported graph is beyond the budget of its precision. Whether they are good images, look at grid.png.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cat_serve.contract import Precision
from export.weights_report import GRID_NAME, failures, image_statistics, markdown

if TYPE_CHECKING:
    from cat_serve.contract import Batch, Output
    from cat_serve.model.checkpoint import Checkpoint

CLASSES = (207, 360, 387, 974)
SEEDS = 4
RUN_BATCH = 4
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
REPORT_NAME = "report.md"


def check(
    path: Path, out: Path, classes: Sequence[int] = CLASSES, seeds: int = SEEDS,
    precisions: Sequence[Precision] = PRECISIONS,
) -> dict[str, Any]:  # fmt: skip
    """Make the images, measure, export and compare; write grid and report into `out`.

    Returns:
        What was found; `passed` says whether nothing failed.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        InvalidInput: it has fewer classes.
    """
    from cat_serve.files import sha256_of, write_text
    from cat_serve.images import encode_png, grid
    from cat_serve.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    _require_classes(classes, checkpoint)
    batch = inputs(checkpoint, classes, seeds)
    output, latents = reference(checkpoint, batch)
    report: dict[str, Any] = {
        "model": checkpoint.name,
        "checkpoint_sha256": sha256_of(path),
        "source": checkpoint.training,
        "classes": {int(c): checkpoint.class_names[c] for c in classes},
        "seeds": seeds,
        "image_size": list(checkpoint.image_size),
        "generated": latents,
        "images": image_statistics(output, len(classes), seeds),
        "parity": {p: parity(checkpoint, batch, output, p) for p in precisions},
        "made_with": made_with(),
    }
    report["failures"] = failures(report)
    report["passed"] = not report["failures"]
    out.mkdir(parents=True, exist_ok=True)
    (out / GRID_NAME).write_bytes(encode_png(grid(output.images, columns=seeds)))
    write_text(out / REPORT_NAME, markdown(report))
    return report | {"grid": str(out / GRID_NAME), "report": str(out / REPORT_NAME)}


def _require_classes(classes: Sequence[int], checkpoint: Checkpoint) -> None:
    from cat_serve.errors import InvalidInput

    count = len(checkpoint.class_names)
    if wrong := [c for c in classes if not 0 <= c < count]:
        raise InvalidInput(
            f"{checkpoint.name} has classes 0 to {count - 1}, not {', '.join(map(str, wrong))}.",
            hint="name two or more of its own with --classes",
        )


def inputs(checkpoint: Checkpoint, classes: Sequence[int], seeds: int) -> Batch:
    """Return seeds 0 to `seeds` - 1 of each class, class by class, at psi 1."""
    import numpy as np

    from export.probes import Seeded

    rows = len(classes) * seeds
    return Seeded(
        np.tile(np.arange(seeds), len(classes)),
        np.repeat(np.array(classes, dtype=np.int64), seeds),
        np.ones(rows, dtype=np.float32),
    ).batch(checkpoint.generator.config.z_shape)


def reference(checkpoint: Checkpoint, batch: Batch) -> tuple[Output, dict[str, float]]:
    """Return the images that torch makes in float32, and statistics of what the generator itself gave."""
    import torch
    from tqdm import tqdm

    from cat_serve.model.fused import FusedModel
    from export.probes import counting, in_batches

    model = FusedModel.from_checkpoint(checkpoint)
    seen: list[torch.Tensor] = []
    hook = model.generator.register_forward_hook(lambda module, given, made: seen.append(made))
    with tqdm(total=len(batch), unit="img", desc="torch") as progress:
        output = in_batches(counting(model.run, progress.update), batch, RUN_BATCH)
    hook.remove()
    made = torch.cat(seen).double()
    return output, {
        "mean": made.mean().item(),
        "std": made.std().item(),
        "largest": made.abs().max().item(),
    }


def parity(
    checkpoint: Checkpoint, batch: Batch, output: Output, precision: Precision
) -> dict[str, Any]:
    """Export the plain graph of a precision and hold its images to torch's.

    Returns:
        The difference and, under `failures`, what is beyond the budget.
    """
    import tempfile

    from export.graphs import onnx_engine, plan, write_graph
    from export.parity import compare, failed
    from export.probes import in_batches, rows

    graph = plan([precision], precision, None)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / graph.name
        print(f"exporting and running {graph.name}", file=sys.stderr)
        write_graph(graph.build(checkpoint), rows(batch, slice(2)), path)
        candidate = in_batches(onnx_engine(path), batch, RUN_BATCH)
    difference = compare(output, candidate)
    beyond = failed(difference, precision, [], f"The graph {graph.name}")
    return {"difference": difference.to_dict(), "failures": beyond}


def made_with() -> dict[str, str]:
    """Return versions, and what kind of machine this is."""
    names = ("cat-serve", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime")
    return {name: metadata.version(name) for name in names} | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.check_weights", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("checkpoint", type=Path, help="as `cat-serve import` wrote it")
    add("--out", type=Path, default=Path("build/check-weights"),
        help=f"folder for {GRID_NAME} and {REPORT_NAME} (default: %(default)s)")  # fmt: skip
    add("--classes", type=int, nargs="+", default=CLASSES, metavar="INDEX",
        help="(default: 207 360 387 974)")  # fmt: skip
    add(
        "--seeds", type=int, default=SEEDS, metavar="N", help="of each class (default: %(default)s)"
    )
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS,
        help="of the graphs that are compared (default: both; fp32 alone needs half the time)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="export", resumes=False)


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check as the arguments say; the report for people goes to stderr."""
    from cat_serve.errors import InvalidInput

    if arguments.seeds < 1:
        raise InvalidInput(f"--seeds is {arguments.seeds}; it must be at least 1.")
    report = check(
        arguments.checkpoint, arguments.out, arguments.classes, arguments.seeds, arguments.precision
    )
    print(markdown(report), file=sys.stderr)
    return report


if __name__ == "__main__":
    sys.exit(main())
