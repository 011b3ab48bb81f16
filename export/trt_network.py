"""What `export.trt` asks of TensorRT's Python API, one path for TensorRT 10, 11 and TensorRT-RTX.

The package is always handed in as `trt`: nothing here imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cat_serve.errors import ArtefactError, InvalidInput, MissingDependency

if TYPE_CHECKING:
    from export.trt import BuildOptions

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

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            logger.log(level, "%s", message)
            if level == logging.ERROR:
                self.errors.append(message)

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
    """Return the builder's configuration: one profile for the batch, no TF32, workspace, target GPUs."""
    config = builder.create_builder_config()
    profile, sizes = builder.create_optimization_profile(), options.profile
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if batch != -1 or -1 in rest:
            raise ArtefactError(
                f"The input {tensor.name} has shape {[batch, *rest]}: only its batch may be free, and must be.",
                hint="python -m export.onnx writes such graphs",
            )
        shapes = [(n, *rest) for n in (sizes.min_batch, sizes.opt_batch, sizes.max_batch)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    if (tf32 := getattr(trt.BuilderFlag, "TF32", None)) is not None:
        config.clear_flag(tf32)  # float32 means float32
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    _set_capabilities(trt, config, options.compute_capabilities)
    return config


def describe(get: Any, count: int) -> dict[str, str]:
    """Return dtype and shape of every input or output of a network by name."""
    tensors = [get(index) for index in range(count)]
    return {t.name: f"{t.dtype.name.lower()} {list(t.shape)}" for t in tensors}


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
