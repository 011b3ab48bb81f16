"""Build an engine from a graph, and put weights back into one that was built without."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cat_serve.errors import ArtefactError, MissingDependency
from cat_serve.files import written_whole
from export.trt.device import Gpu, find_gpu
from export.trt.network import (
    attach_timing_cache,
    configure,
    describe,
    deserialize,
    make_log,
    network_flags,
    open_builder,
    refit,
)
from export.trt.options import BUILDERS, BuildOptions
from export.trt.progress import progress_monitor


@dataclass(frozen=True)
class Plan:
    """A serialised engine.

    Attributes:
        data: its bytes.
        inputs: {"dtype", "shape"} by name, the batch -1; `outputs` likewise.
        build_s: how long the builder took.
    """

    data: memoryview
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    build_s: float


def this_platform() -> str:
    """Return what engines do not move between, such as linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine()}"


def gpu_for(options: BuildOptions) -> Gpu | None:
    """Return the GPU that the engine will belong to; None if it belongs to none.

    Raises:
        MissingDependency: the build needs a GPU, and there is none.
    """
    if BUILDERS[options.builder].needs_gpu:
        return find_gpu()
    if options.strip_weights:
        try:
            find_gpu()  # its builder fails without a driver as soon as an engine is to be refitted
        except MissingDependency as error:
            raise MissingDependency(
                f"{options.builder} needs a GPU for --strip-weights. {error.message}",
                hint=error.hint,
            ) from error
    return None


def compile_graph(trt: Any, graph: Path, options: BuildOptions) -> Plan:
    """Build an engine; a bar on stderr shows how far it is.

    Raises:
        InvalidInput: the builder's version does not know a value of an option.
        MissingDependency: no GPU where one is needed.
        ArtefactError: the graph cannot be parsed or cannot be built.
    """
    log = make_log(trt)
    started = time.perf_counter()
    builder = open_builder(trt, log, options.builder)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)  # the network's weights are its
    if not parser.parse_from_file(str(graph)):
        raise _failure(
            "parse", graph, options, [str(parser.get_error(i)) for i in range(parser.num_errors)]
        )
    config = configure(trt, builder, network, options)
    timing = None
    if options.timing_cache is not None:
        timing = attach_timing_cache(config, log, options.timing_cache)
    with progress_monitor(trt, graph.name) as monitor:
        config.progress_monitor = monitor
        data = builder.build_serialized_network(network, config)
    if data is None:
        raise _failure("build", graph, options, log.errors)
    if timing is not None and options.timing_cache is not None:
        with written_whole(options.timing_cache) as temporary:
            temporary.write_bytes(memoryview(timing.serialize()))
    return Plan(
        data=memoryview(data),
        inputs=describe(network.get_input, network.num_inputs),
        outputs=describe(network.get_output, network.num_outputs),
        build_s=round(time.perf_counter() - started, 1),
    )


def _failure(what: str, graph: Path, options: BuildOptions, errors: list[str]) -> ArtefactError:
    return ArtefactError(f"{options.builder} cannot {what} {graph.name}: {'; '.join(errors)[:500]}")


def refit_plan(trt: Any, engine: Path, graph: Path, version_compatible: bool) -> bytes:
    """Return the plan in `engine`, built without weights, with those of `graph`.

    Raises:
        MissingDependency: no GPU; an engine cannot be opened without.
        ArtefactError: the engine cannot be opened here, or the weights do not fit.
    """
    find_gpu()
    log = make_log(trt)
    runtime, opened = deserialize(trt, log, engine.read_bytes(), version_compatible)
    try:
        return refit(trt, log, opened, graph)
    finally:
        del opened, runtime
