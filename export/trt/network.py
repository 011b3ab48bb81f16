"""What this project asks of TensorRT's Python API, one path for TensorRT 10, 11 and TensorRT-RTX.

Where the three differ, the difference is here. The package is always handed in as `trt`: nothing here imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cat_serve.errors import ArtefactError, InvalidInput, MissingDependency
from export.trt.options import BuildOptions

logger = logging.getLogger(__name__)


def make_log(trt: Any) -> Any:
    """Return TensorRT's logger that writes to ours (stdout is for data) and keeps what went wrong."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            logger.log(level, "%s", message)
            if level == logging.ERROR:
                self.errors.append(message)
            if level == logging.WARNING:
                self.warnings.append(message)

    return Log()


def open_builder(trt: Any, log: Any, name: str) -> Any:
    """Return a builder.

    Raises:
        MissingDependency: TensorRT found no GPU; its constructor then returns nothing, a TypeError in Python.
    """
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:
        reason = log.errors[-1] if log.errors else str(error)
        raise MissingDependency(
            f"{name} {trt.__version__} cannot build here: {reason}.",
            hint="tensorrt needs an NVIDIA GPU and its driver; --builder tensorrt-rtx needs neither",
        ) from error


def network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network: one in TensorRT 10; later every network is, flag or not."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    """Return the builder's configuration: one profile for the batch, no TF32, and what the options say.

    Raises:
        ArtefactError: an input has another free axis than its batch.
        InvalidInput: this version does not know a value of an option.
    """
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, options.profile.sizes))
    if (tf32 := getattr(trt.BuilderFlag, "TF32", None)) is not None:
        config.clear_flag(tf32)  # float32 means float32
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        for flag in strip_flags(trt, options.builder):
            config.set_flag(flag)
    _set_hardware_compatibility(trt, config, options.hardware_compatibility)
    _set_capabilities(trt, config, options.compute_capabilities)
    return config


def strip_flags(trt: Any, builder: str) -> tuple[Any, Any]:
    """Return the flags of an engine without weights.

    TensorRT is told that the same weights come back: it optimises as for a full engine, and REFIT without that
    promise loses biases in 11.3 (its release notes). TensorRT-RTX documents REFIT alone.
    """
    refit = "REFIT" if builder == "tensorrt-rtx" else "REFIT_IDENTICAL"
    return trt.BuilderFlag.STRIP_PLAN, getattr(trt.BuilderFlag, refit)


def attach_timing_cache(config: Any, log: Any, path: Path) -> Any:
    """Give the builder the kernels that were timed before; return the cache, which the build adds to.

    Raises:
        ArtefactError: the file is no timing cache, or one of another TensorRT or GPU.
    """
    known = path.read_bytes() if path.is_file() else b""
    before = len(log.warnings)
    cache = config.create_timing_cache(known)
    # What it cannot read it warns of, and begins an empty cache, which would then replace the file.
    refused = known and any("timing cache" in said for said in log.warnings[before:])
    if refused or cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ArtefactError(
            f"{path} is no timing cache of this TensorRT and GPU.",
            hint="remove the file, or name another with --timing-cache",
        )
    return cache


def describe(get: Any, count: int) -> dict[str, Any]:
    """Return dtype and shape, the batch -1, of every input or output of a network by name."""
    tensors = [get(index) for index in range(count)]
    return {t.name: {"dtype": t.dtype.name.lower(), "shape": list(t.shape)} for t in tensors}


def deserialize(trt: Any, log: Any, plan: bytes, version_compatible: bool) -> tuple[Any, Any]:
    """Return a runtime and the engine in `plan`; the runtime must outlive the engine.

    Args:
        version_compatible: the plan carries a lean runtime, which is code of the host; only then it may run.

    Raises:
        ArtefactError: this machine cannot run the plan.
    """
    runtime = trt.Runtime(log)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = log.errors[0] if log.errors else "no reason given"
        raise ArtefactError(
            f"{trt.__name__} {trt.__version__} cannot open the engine: {reason[:300]}.",
            hint="build it again on this machine: python -m export.trt --help",
        )
    return runtime, engine


def refit(trt: Any, log: Any, engine: Any, graph: Path) -> bytes:
    """Put a graph's weights into an engine without; return the plan with weights, which cannot be refitted again.

    Raises:
        ArtefactError: the weights do not fit, or some are missing.
    """
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    read = parser.refit_from_file(str(graph))
    missing = list(refitter.get_missing_weights())
    if not read or missing or not refitter.refit_cuda_engine():
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)] + log.errors
        raise ArtefactError(
            f"The weights of {graph.name} do not fit the engine: "
            f"{len(missing)} are missing; {'; '.join(errors)[:500]}.",
            hint="refit with the graph that the engine was built from",
        )
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    return bytes(memoryview(engine.serialize_with_config(config)))


def _profile(builder: Any, network: Any, sizes: Sequence[int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch != -1 or -1 in rest:
            raise ArtefactError(
                f"The input {tensor.name} has shape {[batch, *rest]}: only its batch may be free, and must be.",
                hint="python -m export.onnx writes such graphs",
            )
        profile.set_shape(tensor.name, *((n, *rest) for n in sizes))
    return profile


def _set_hardware_compatibility(trt: Any, config: Any, wanted: str) -> None:
    if wanted == "none":
        return
    name = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}[wanted]
    level = getattr(trt.HardwareCompatibilityLevel, name, None)
    if level is None:  # SAME_COMPUTE_CAPABILITY came with 10.9
        raise InvalidInput(
            f"TensorRT {trt.__version__} does not support --hardware-compatibility {wanted}.",
            hint="use a newer TensorRT",
        )
    config.hardware_compatibility_level = level


def _set_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    if not wanted:
        return
    known = {n.removeprefix("SM"): v for n, v in trt.ComputeCapability.__members__.items()
             if n.startswith("SM")}  # fmt: skip
    if unknown := [name for name in wanted if name not in known]:
        raise InvalidInput(
            f"No compute capability {', '.join(unknown)} in TensorRT-RTX {trt.__version__}.",
            hint=f"it knows {', '.join(known)}",
        )
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(wanted):
        config.set_compute_capability(known[name], index)
