"""Check this project on a machine with an NVIDIA GPU, and print a report to paste.

    python -m export.gpu_check
    python -m export.gpu_check --tritonserver /opt/tritonserver/bin/tritonserver --out report.md

Builds an engine from every plain graph of the model that ships, holds its images to those of ONNX Runtime on the CPU,
measures latency by batch and memory, and serves the plans with Triton if there is one. The report is Markdown, the
last line JSON. Exit code 1: something is beyond its budget; 2: there is no GPU or no TensorRT here.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cat_serve.contract import Precision
from export.trt.options import BUILDERS, BuildOptions, Profile

if TYPE_CHECKING:
    from cat_serve.contract import Batch
    from cat_serve.manifest import Artefact
    from export.gpu_check.machine import Machine
    from export.gpu_check.triton import Served
    from export.triton_server.installation import Installation

MODEL = Path("model_repository/fashion-32/1")


@dataclass(frozen=True)
class CheckOptions:
    """How much is checked.

    Attributes:
        classes: each costs three images in the engine and in ONNX Runtime on the CPU.
        repeats: calls that each latency is taken from.
        triton: the server to try; None leaves it out, for the reason in `no_triton`.
    """

    precisions: Sequence[Precision]
    classes: int = 32
    repeats: int = 50
    triton: Installation | None = None
    no_triton: str = ""


def check(machine: Machine, artefact: Artefact, options: CheckOptions) -> dict[str, Any]:
    """Check every engine, alone and in Triton; return the report, `passed` in it.

    Raises:
        ArtefactError: the model has no graph of a precision, or one cannot be built.
    """
    from export.probes import probe_batch

    manifest = artefact.manifest
    batch = probe_batch(manifest.num_classes, manifest.z_shape, options.classes)
    engines, triton = [], []
    for precision in options.precisions:
        graph, _ = artefact.graph(precision)
        path, facts = machine.build(graph)
        report, served = check_engine(machine, graph, path, precision, batch, options.repeats)
        engines.append(facts | report)
        if options.triton is not None:
            from export.gpu_check.triton import check_triton

            triton.append(check_triton(options.triton, artefact, served, batch, options.repeats))
    failures = [failure for each in (*engines, *triton) for failure in each["failures"]]
    return {
        "passed": not failures,
        "failures": failures,
        "machine": machine.describe(),
        "model": manifest.model,
        "model_version": artefact.version,
        "engines": engines,
        "triton": triton,
        "triton_left_out": options.no_triton or None,
    }


def check_engine(
    machine: Machine, graph: Path, path: Path, precision: Precision, batch: Batch, repeats: int
) -> tuple[dict[str, Any], Served]:
    """Return the report of one engine, and what Triton needs to serve it too."""
    from export.gpu_check.triton import Served
    from export.probes import RUN_BATCH, in_batches
    from export.trt import latency
    from export.trt.parity import Subject, measure_parity

    before = machine.used_bytes()
    engine = machine.open(path)
    try:
        subject = Subject(
            f"the engine of {graph.name}", engine, precision,
            engine.min_batch, engine.max_batch, engine.opt_batch,
        )  # fmt: skip
        parity = measure_parity(subject, graph, batch)
        sizes = latency.batch_sizes(engine.min_batch, engine.max_batch)
        timed = latency.measure(engine, batch, sizes, repeats)
        memory_bytes = machine.used_bytes() - before
        largest = engine.max_batch
        output = in_batches(engine, batch, min(RUN_BATCH, largest))
    finally:
        engine.close()
    report = {
        "graph": graph.name,
        "precision": precision,
        "failures": parity["failures"],
        "parity": parity,
        "latency": [each.to_dict() for each in timed],
        "memory_bytes": memory_bytes,
    }
    return report, Served(machine.triton_engine, precision, path, largest, output)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.gpu_check", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, default = parser.add_argument, CheckOptions(())
    precisions = get_args(Precision)
    add(
        "--model", type=Path, default=MODEL, metavar="VERSION_FOLDER", help="(default: %(default)s)"
    )
    add("--precision", nargs="+", choices=precisions, help="which graphs (default: all there are)")
    add("--builder", choices=BUILDERS, default="tensorrt", help="(default: %(default)s)")
    add("--opt-batch", type=int, default=Profile.opt_batch, help="(default: %(default)s)")
    add("--max-batch", type=int, help="(default: the model's)")
    add("--parity-classes", type=int, default=default.classes, metavar="N",
        help="compare 3N images (default: %(default)s)")  # fmt: skip
    add("--repeats", type=int, default=default.repeats, metavar="N",
        help="calls that a latency is taken from (default: %(default)s)")  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="folder of engines, as in export.trt")
    add("--tritonserver", type=Path, metavar="FILE", help="(default: the one on PATH, if any)")
    add("--out", type=Path, metavar="FILE", help="write the report here too")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    return run_command(lambda: work(arguments), extra="cpu,export,tensorrt,triton")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check this machine as the arguments say, and print the report."""
    from cat_serve.errors import InvalidInput
    from cat_serve.manifest import load_artefact
    from export.gpu_check.machine import GpuMachine
    from export.trt.cache import EngineCache, default_cache

    for name in ("repeats", "parity_classes"):
        if (value := getattr(arguments, name)) < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    artefact = load_artefact(arguments.model)
    largest = arguments.max_batch or artefact.manifest.max_batch
    options = BuildOptions(
        arguments.builder, Profile(1, min(arguments.opt_batch, largest), largest)
    )
    machine = GpuMachine(options, EngineCache(arguments.cache or default_cache()))
    triton, reason = find_triton(arguments.builder, arguments.tritonserver)
    wanted = arguments.precision or artefact.manifest.precisions
    checked = CheckOptions(wanted, arguments.parity_classes, arguments.repeats, triton, reason)
    return show(check(machine, artefact, checked), arguments.out)


def show(report: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Print the report as Markdown, write it to `out` too, and return it."""
    from cat_serve.files import write_text
    from export.gpu_check.report import markdown

    text = markdown(report)
    print(text)
    if out is not None:
        write_text(out, text + "\n")
    return report


def find_triton(builder: str, binary: Path | None) -> tuple[Installation | None, str]:
    """Return the Triton to try, or None and why it is left out.

    Raises:
        MissingDependency: `binary` is not there.
        InvalidInput: Triton does not run what `builder` builds.
    """
    import shutil

    from cat_serve.errors import InvalidInput
    from export.triton_server.installation import find_installation

    if builder == "tensorrt-rtx":
        if binary is not None:
            raise InvalidInput(
                "Triton does not run TensorRT-RTX engines: leave --tritonserver out."
            )
        return None, "Triton does not run TensorRT-RTX engines"
    if binary is None and (found := shutil.which("tritonserver")) is None:
        return None, "no tritonserver is on PATH, and --tritonserver was not given"
    return find_installation(binary or Path(str(found))), ""


if __name__ == "__main__":
    sys.exit(main())
