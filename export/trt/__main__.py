"""Build a TensorRT engine from one of the exported ONNX graphs, or take it from the cache.

    python -m export.trt model_repository/fashion-32/1/model.fp16.onnx --max-batch 16
    python -m export.trt model_repository/fashion-32/1/model.fp16.onnx --out fashion-32.fp16.engine
    python -m export.trt --list

Networks are strongly typed: the graph's own dtypes decide the precision, so an FP16 engine is made from
model.fp16.onnx. An engine belongs to the package version and (with --builder tensorrt) to the GPU that made it; where
it can be run, it is held to its graph by the budgets of export.verify. --builder tensorrt-rtx needs no GPU; its engines
run in TensorRT-RTX only. Every engine's facts lie beside it, in ENGINE.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.trt.options import BUILDERS, HARDWARE_COMPATIBILITY, MIB, BuildOptions, Profile

if TYPE_CHECKING:
    from export.trt.cache import EngineCache

PARITY_CLASSES = 32
# Flags of a build, which have no meaning for anything else.
BUILD_FLAGS = ("builder", "min_batch", "opt_batch", "max_batch", "workspace", "compute_capability", "timing_cache",
               "hardware_compatibility", "version_compatible", "strip_weights")  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.trt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, default = parser.add_argument, Profile()
    add(
        "graph",
        type=Path,
        nargs="?",
        help="model.onnx, model.fp16.onnx or studio.onnx of an export",
    )
    add("--out", type=Path, help="put the engine here too; its facts go to OUT.json")
    build = parser.add_argument_group("building").add_argument
    build("--builder", choices=BUILDERS, default="tensorrt", help="(default: %(default)s)")
    build("--min-batch", type=int, default=default.min_batch, help="(default: %(default)s)")
    build("--opt-batch", type=int, default=default.opt_batch, help="(default: %(default)s)")
    build("--max-batch", type=int, default=default.max_batch, help="(default: %(default)s)")
    build(
        "--workspace", type=int, metavar="MIB", help="memory a layer may use (default: TensorRT's)"
    )
    build(
        "--timing-cache", type=Path, metavar="FILE", help="read measured kernels, and add to them"
    )
    build("--hardware-compatibility", choices=HARDWARE_COMPATIBILITY, default="none",
        help="which other GPUs must be able to run it (default: %(default)s)")  # fmt: skip
    build(
        "--version-compatible", action="store_true", help="later TensorRT versions can run it too"
    )
    build("--strip-weights", action="store_true", help="leave the weights out; see --refit")
    build("--compute-capability", nargs="+", default=(), metavar="SM",
        help="GPUs to build for, such as 86 89 120; tensorrt-rtx only")  # fmt: skip
    add(
        "--refit",
        type=Path,
        metavar="ENGINE",
        help="put the graph's weights into this engine, built without",
    )
    add("--parity-classes", type=int, default=PARITY_CLASSES, metavar="N",
        help="compare the engine with its graph on 3N images; 0: not at all (default: %(default)s)")  # fmt: skip
    cache = parser.add_argument_group("cache").add_argument
    cache("--cache", type=Path, metavar="DIR",
        help="folder of engines (default: CAT_SERVE_ENGINE_CACHE, else in the user's cache folder)")  # fmt: skip
    cache("--list", action="store_true", help="say which engines there are")
    cache("--verify", action="store_true", help="check every engine against its record")
    cache("--prune", action="store_true",
        help="remove engines that are damaged or of another version of an installed builder")  # fmt: skip
    cache("--unused-days", type=float, metavar="N", help="prune engines not used for so long too")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    return run_command(lambda: work(arguments), extra="export,tensorrt")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build, refit or look after the cache, as the arguments say; return what to report."""
    from export.trt import engines
    from export.trt.cache import EngineCache, default_cache

    check(arguments)
    cache = EngineCache(arguments.cache or default_cache())
    if arguments.list or arguments.verify or arguments.prune:
        return look_after(cache, arguments)
    if arguments.refit is not None:
        entry, hit = engines.refitted(arguments.graph, arguments.refit, cache)
    else:
        entry, hit = engines.built(arguments.graph, options_of(arguments), cache)
    entry = engines.proven(entry, arguments.graph, cache, arguments.parity_classes)
    if arguments.out is not None:
        entry = engines.copied(entry, arguments.graph, arguments.out)
    parity = entry.record["parity"]
    if not parity["measured"]:
        print(f"parity was not measured: {parity['reason']}", file=sys.stderr)
    print(f"the same with NVIDIA's tool: {entry.record['command']}", file=sys.stderr)
    return {"engine": str(entry.engine), "cached": hit} | {
        name: value for name, value in entry.record.items() if name != "engine"
    } | entry.record["engine"]  # fmt: skip


def look_after(cache: EngineCache, arguments: argparse.Namespace) -> dict[str, Any]:
    """List, verify or prune; one line for each engine on stdout before the report."""
    from cat_serve.errors import ArtefactError
    from export.trt import engines

    removed = {}
    if arguments.prune:
        removed = cache.prune(engines.outdated, arguments.unused_days)
    listed, damaged = [], {}
    for engine, entry in cache.entries():
        if isinstance(entry, ArtefactError):
            damaged[engine.name] = entry.message
            print(f"{engine.name}  DAMAGED: {entry.message}")
        else:
            listed.append(engines.summary(entry))
            print("  ".join(str(value) for value in listed[-1].values()))
    for name, why in removed.items():
        print(f"{name}  removed: {why}")
    report = {"cache": str(cache.root), "engines": listed, "damaged": damaged, "removed": removed}
    return {"passed": not damaged} | report if arguments.verify else report


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that do not belong together.

    Raises:
        InvalidInput: says which.
    """
    from cat_serve.errors import InvalidInput

    tending = [f"--{n}" for n in ("list", "verify", "prune") if getattr(arguments, n)]
    if len(tending) > 1:
        raise InvalidInput(f"{' and '.join(tending)} are two commands.")
    if bool(tending) == (arguments.graph is not None):
        raise InvalidInput("Name one graph, or one of --list, --verify and --prune.")
    if arguments.unused_days is not None and not arguments.prune:
        raise InvalidInput("--unused-days has no meaning without --prune.")
    default = build_parser().get_default
    given = [n for n in BUILD_FLAGS if getattr(arguments, n) != default(n)]
    other = tending[0] if tending else "--refit"
    if given and (tending or arguments.refit is not None):
        raise InvalidInput(f"--{given[0].replace('_', '-')} has no meaning with {other}.")
    if tending and (arguments.out is not None or arguments.refit is not None):
        raise InvalidInput(f"--out and --refit have no meaning with {other}.")
    if arguments.workspace is not None and arguments.workspace < 1:
        raise InvalidInput(f"--workspace is {arguments.workspace} MiB; it must be at least 1.")
    if arguments.parity_classes < 0:
        raise InvalidInput(
            f"--parity-classes is {arguments.parity_classes}; it must be at least 0."
        )


def options_of(arguments: argparse.Namespace) -> BuildOptions:
    """Return what to build.

    Raises:
        InvalidInput: no such profile, or a flag that the builder does not support.
    """
    return BuildOptions(
        builder=arguments.builder,
        profile=Profile(arguments.min_batch, arguments.opt_batch, arguments.max_batch),
        workspace_bytes=None if arguments.workspace is None else arguments.workspace * MIB,
        compute_capabilities=tuple(arguments.compute_capability),
        timing_cache=arguments.timing_cache,
        hardware_compatibility=arguments.hardware_compatibility,
        version_compatible=arguments.version_compatible,
        strip_weights=arguments.strip_weights,
    )


if __name__ == "__main__":
    sys.exit(main())
