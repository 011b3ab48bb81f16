"""Where `export.gpu_check` builds and runs engines: the GPU of this machine, behind what a check asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cat_serve.contract import Output
    from export.trt.cache import EngineCache
    from export.trt.options import BuildOptions


class Opened(Protocol):
    """An engine that can be run."""

    min_batch: int
    opt_batch: int
    max_batch: int

    def __call__(self, batch: Any) -> Output: ...
    def close(self) -> None: ...


class Machine(Protocol):
    """What is checked: where engines are built and run. `GpuMachine` is the real one.

    Attributes:
        triton_engine: how Triton serves its engines, `--engine` of export.triton.
    """

    triton_engine: str

    def describe(self) -> dict[str, str]:
        """Return what people want to know of it, by name."""

    def build(self, graph: Path) -> tuple[Path, dict[str, Any]]:
        """Return where a graph's engine lies, and `cached`, `build_s` and `size_bytes`."""

    def open(self, engine: Path) -> Opened:
        """Open an engine."""

    def used_bytes(self) -> int:
        """Return how much of the GPU's memory is taken."""


class GpuMachine:
    """The first GPU of this machine.

    Raises:
        MissingDependency: there is no GPU, or no such builder.
    """

    triton_engine = "tensorrt_plan"

    def __init__(self, options: BuildOptions, cache: EngineCache) -> None:
        from export.trt.device import CudaDevice
        from export.trt.options import load_package

        self._device = CudaDevice()  # first: without a GPU there is nothing to install for
        self._trt = load_package(options.builder)
        self._options, self._cache = options, cache

    def describe(self) -> dict[str, str]:
        """See `Machine.describe`."""
        from importlib import metadata

        from cat_serve import __version__
        from export.trt.build import this_platform

        gpu = self._device.gpu
        return {
            "GPU": f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.1f} GiB",
            "driver": f"CUDA {gpu.cuda}",
            self._options.builder: str(self._trt.__version__),
            "ONNX Runtime": metadata.version("onnxruntime"),
            "cat-serve": __version__,
            "platform": this_platform(),
        }  # fmt: skip

    def build(self, graph: Path) -> tuple[Path, dict[str, Any]]:
        """See `Machine.build`."""
        from export.trt.engines import built

        entry, hit = built(graph, self._options, self._cache)
        build_s = entry.record["timing"]["build_s"]
        return entry.engine, {"cached": hit, "build_s": build_s} | entry.record["engine"]

    def open(self, engine: Path) -> Opened:
        """See `Machine.open`."""
        from export.trt.runner import open_engine

        return open_engine(engine)

    def used_bytes(self) -> int:
        """See `Machine.used_bytes`."""
        return self._device.used_bytes()
