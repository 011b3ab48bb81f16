"""Build a TensorRT engine from one of the exported ONNX graphs.

    python -m export.trt model_repository/fashion-32/1/model.fp16.onnx --out fashion-32.fp16.engine

Networks are strongly typed: the graph's own dtypes decide the precision, so an FP16 engine is made from
model.fp16.onnx. An engine belongs to the package version and (with --builder tensorrt) to the GPU that made it.
--builder tensorrt-rtx needs no GPU; its engines run in TensorRT-RTX only. The facts lie beside, in ENGINE.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# What to import, and how to get it.
BUILDERS = {
    "tensorrt": ("tensorrt", "pip install 'cat-serve[tensorrt]' on a machine with an NVIDIA GPU"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'cat-serve[tensorrt-rtx]' (builds without a GPU)"),
}  # fmt: skip
MIB = 2**20


@dataclass(frozen=True)
class Profile:
    """The batch sizes that an engine takes, and the one it is tuned for."""

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64

    def __post_init__(self) -> None:
        from cat_serve.errors import InvalidInput

        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise InvalidInput(
                f"Batches of {self.min_batch}, {self.opt_batch} and {self.max_batch} are no profile.",
                hint="1 <= --min-batch <= --opt-batch <= --max-batch",
            )


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_bytes: memory that a layer may use while it runs; None leaves it to TensorRT.
        compute_capabilities: GPUs to build for, such as "89"; TensorRT-RTX only, empty for its default.
    """

    builder: str = "tensorrt"
    profile: Profile = Profile()
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()


def load_package(builder: str) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MissingDependency: it is not installed, or its libraries do not load.
    """
    from cat_serve.errors import MissingDependency

    module, hint = BUILDERS[builder]
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependency(
            f"The builder {builder} cannot be used: {reason}.", hint=hint
        ) from error


def build(graph: Path, out: Path, options: BuildOptions) -> dict[str, Any]:
    """Build an engine, and write it with its facts beside; both under temporary names first.

    Returns:
        The facts.

    Raises:
        InvalidInput: options that contradict each other.
        MissingDependency: no such package, or no GPU where one is needed.
        ArtefactError: the graph is not there, cannot be parsed or cannot be built.
    """
    from cat_serve.errors import ArtefactError
    from cat_serve.files import sha256_of, write_text, written_whole
    from export.graphs import files_of
    from export.trt_network import configure, describe, make_log, network_flags, open_builder

    if not graph.is_file():
        raise ArtefactError(f"There is no graph {graph}.", hint="python -m export.onnx --help")
    _require_capabilities_for_rtx(options)
    trt = load_package(options.builder)
    log = make_log(trt)
    started = time.perf_counter()
    builder = open_builder(trt, log, options.builder)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ArtefactError(
            f"{options.builder} cannot parse {graph.name}: {'; '.join(errors)[:500]}"
        )
    config = configure(trt, builder, network, options)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtefactError(
            f"{options.builder} cannot build {graph.name}: {'; '.join(log.errors)[:500]}."
        )
    with written_whole(out) as temporary:
        temporary.write_bytes(memoryview(engine))
    facts = {
        "engine_sha256": sha256_of(out),
        "engine_bytes": out.stat().st_size,
        "graph": {file.name: sha256_of(file) for file in files_of(graph)},
        "profile": asdict(options.profile),
        "workspace_bytes": options.workspace_bytes,
        "compute_capabilities": list(options.compute_capabilities),
        "tf32": False,
        "versions": {options.builder: trt.__version__, "python": platform.python_version()},
        "inputs": describe(network.get_input, network.num_inputs),
        "outputs": describe(network.get_output, network.num_outputs),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_text(out.with_name(out.name + ".json"), json.dumps(facts, indent=1) + "\n")
    return facts


def _require_capabilities_for_rtx(options: BuildOptions) -> None:
    from cat_serve.errors import InvalidInput

    if options.compute_capabilities and options.builder != "tensorrt-rtx":
        raise InvalidInput(
            "TensorRT builds for the GPU that is in the machine: --compute-capability has no meaning for it.",
            hint="leave it out, or use --builder tensorrt-rtx",
        )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.trt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, default = parser.add_argument, Profile()
    add("graph", type=Path, help="model.onnx, model.fp16.onnx or studio.onnx of an export")
    add("--out", type=Path, required=True, help="the engine; its facts go to OUT.json")
    add("--builder", choices=BUILDERS, default="tensorrt")
    add("--min-batch", type=int, default=default.min_batch)
    add("--opt-batch", type=int, default=default.opt_batch)
    add("--max-batch", type=int, default=default.max_batch)
    add("--workspace", type=int, metavar="MIB", help="memory a layer may use (default: TensorRT's)")
    add("--compute-capability", nargs="+", default=(), metavar="SM",
        help="GPUs to build for, such as 86 89 120; tensorrt-rtx only")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    return run_command(lambda: work(arguments), extra="tensorrt")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build as the arguments say; return what to report."""
    from cat_serve.errors import InvalidInput

    if arguments.workspace is not None and arguments.workspace < 1:
        raise InvalidInput(f"--workspace is {arguments.workspace} MiB; it must be at least 1.")
    options = BuildOptions(
        builder=arguments.builder,
        profile=Profile(arguments.min_batch, arguments.opt_batch, arguments.max_batch),
        workspace_bytes=None if arguments.workspace is None else arguments.workspace * MIB,
        compute_capabilities=tuple(arguments.compute_capability),
    )
    return {"engine": str(arguments.out)} | build(arguments.graph, arguments.out, options)


if __name__ == "__main__":
    sys.exit(main())
