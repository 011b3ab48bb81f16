"""Run a TensorRT engine: host arrays in, host arrays out, through buffers that are allocated once.

`open_engine(path)` refuses an engine whose record, hash, version or GPU does not fit; what it returns is called with a
Batch (or a StudioBatch, for a studio's engine) and gives an Output.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cat_serve.contract import OUTPUT_NAMES, STUDIO_OUTPUT_NAMES, Output, StudioOutput
from cat_serve.errors import BackendError, InvalidInput


class Device(Protocol):
    """Memory that an engine works in; see `export.trt.__main__.device.CudaDevice`."""

    stream: int

    def allocate(self, nbytes: int) -> int: ...
    def upload(self, array: np.ndarray, address: int) -> None: ...
    def download(self, address: int, array: np.ndarray) -> None: ...
    def wait(self) -> None: ...
    def free(self) -> None: ...


class TrtEngine:
    """One engine with one context; calls from several threads wait for each other.

    Args:
        engine: TensorRT's ICudaEngine, with one profile whose batch alone is free.
        log: TensorRT's logger, which keeps its errors.
        keep: what must live as long as the engine.

    Attributes:
        min_batch, opt_batch, max_batch: of its profile.
    """

    def __init__(self, trt: Any, engine: Any, device: Device, log: Any, keep: Any = None) -> None:
        self._engine, self._device, self._log, self._keep = engine, device, log, keep
        self._lock = threading.Lock()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._dtypes = {n: np.dtype(trt.nptype(engine.get_tensor_dtype(n))) for n in names}
        self._shapes = {n: tuple(engine.get_tensor_shape(n))[1:] for n in names}
        shapes = engine.get_tensor_profile_shape(self._inputs[0], 0)
        self.min_batch, self.opt_batch, self.max_batch = (int(shape[0]) for shape in shapes)
        self._outputs = STUDIO_OUTPUT_NAMES if STUDIO_OUTPUT_NAMES[-1] in names else OUTPUT_NAMES
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"TensorRT made no context: {self._reason()}")
        self._addresses = {name: self._bind(name) for name in names}

    def __call__(self, batch: Any) -> Output:
        """Make the images of a Batch, or of a StudioBatch.

        Raises:
            InvalidInput: more or fewer rows than the engine takes, or tensors of another kind.
            BackendError: the engine failed.
        """
        feeds = self._checked(batch)
        with self._lock:
            arrays = self._run(feeds, len(batch))
        values = [arrays[name] for name in self._outputs]
        return StudioOutput(*values) if self._outputs == STUDIO_OUTPUT_NAMES else Output(*values)

    def close(self) -> None:
        """Free the engine and its buffers; it must not be called again."""
        with self._lock:
            self._context = self._engine = self._keep = None
            self._device.free()

    def _bind(self, name: str) -> int:
        """Allocate a tensor for the largest batch, and tell the context."""
        values = self.max_batch * math.prod(self._shapes[name])
        address = self._device.allocate(values * self._dtypes[name].itemsize)
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"TensorRT takes no address for {name}: {self._reason()}")
        return address

    def _checked(self, batch: Any) -> dict[str, np.ndarray]:
        if not self.min_batch <= len(batch) <= self.max_batch:
            raise InvalidInput(
                f"The engine takes {self.min_batch} to {self.max_batch} rows, not {len(batch)}.",
                hint="build one with another --min-batch or --max-batch",
            )
        feeds: dict[str, np.ndarray] = batch.feeds()
        expected = {n: (len(batch), *self._shapes[n]) for n in self._inputs}
        got = {name: array.shape for name, array in feeds.items()}
        if got != expected:
            raise InvalidInput(f"The engine takes {expected}, not {got}.")
        return {n: np.ascontiguousarray(feeds[n], self._dtypes[n]) for n in self._inputs}

    def _run(self, feeds: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BackendError(f"TensorRT refuses {name} {array.shape}: {self._reason()}")
            self._device.upload(array, self._addresses[name])
        if not self._context.execute_async_v3(self._device.stream):
            raise BackendError(f"TensorRT failed: {self._reason()}")
        arrays = {n: np.empty((rows, *self._shapes[n]), self._dtypes[n]) for n in self._outputs}
        for name, array in arrays.items():
            self._device.download(self._addresses[name], array)
        self._device.wait()
        return arrays

    def _reason(self) -> str:
        return self._log.errors[-1][:300] if self._log.errors else "it gave no reason."


def open_engine(path: Path) -> TrtEngine:
    """Open an engine that `export.trt` built, on the first GPU.

    Raises:
        MissingDependency: TensorRT or a GPU is not here.
        ArtefactError: the engine was changed, or was built for something else.
        InvalidInput: it was built without weights.
    """
    from export.trt.build import this_platform
    from export.trt.device import CudaDevice
    from export.trt.network import deserialize, make_log
    from export.trt.options import load_package
    from export.trt.record import read_record, require_fit

    record = read_record(path)
    options = record["key"]["options"]
    trt = load_package(options["builder"])
    device = CudaDevice()
    require_fit(record, trt.__version__, device.gpu, this_platform())
    log = make_log(trt)
    runtime, engine = deserialize(trt, log, path.read_bytes(), options["version_compatible"])
    return TrtEngine(trt, engine, device, log, keep=runtime)
