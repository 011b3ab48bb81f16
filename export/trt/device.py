"""The GPU of this machine: what it is, and its memory, through NVIDIA's cuda-bindings.

Not through torch: cuda-bindings is small, finds the driver by itself, and does not care whether the torch beside it is
a CPU build. It takes no memory of its own, so what is measured is the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cat_serve.errors import BackendError, MissingDependency

BINDINGS = "pip install 'cat-serve[tensorrt]'"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        compute_capability: such as 8.9.
        cuda: the newest CUDA that the driver supports, such as 13.0.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str


def load_cuda() -> Any:
    """Import the CUDA runtime's bindings.

    Raises:
        MissingDependency: they are not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency(f"cuda-bindings is missing: {error}.", hint=BINDINGS) from error
    return runtime


def find_gpu() -> Gpu:
    """Return the GPU that CUDA takes first (CUDA_VISIBLE_DEVICES chooses).

    Raises:
        MissingDependency: there is none, or no driver for it.
    """
    cuda = load_cuda()
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        reason = "CUDA finds none"
        if error != cuda.cudaError_t.cudaSuccess:
            reason = cuda.cudaGetErrorString(error)[1].decode()
        raise MissingDependency(
            f"There is no NVIDIA GPU here that can be used: {reason}.",
            hint="run it on a machine with an NVIDIA GPU and its driver (nvidia-smi lists both)",
        )
    properties = call(cuda.cudaGetDeviceProperties(0))
    version = call(cuda.cudaDriverGetVersion())
    return Gpu(
        name=properties.name.rstrip(b"\0").decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=int(properties.totalGlobalMem),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def call(result: tuple[Any, ...]) -> Any:
    """Return what a CUDA call gave.

    Raises:
        BackendError: it failed.
    """
    error, *values = result
    if int(error) != 0:
        raise BackendError(f"CUDA failed: {error.name}.")
    return values[0] if len(values) == 1 else tuple(values)


class CudaDevice:
    """Buffers on the first GPU, and one stream that all work goes through in order."""

    def __init__(self) -> None:
        self.gpu = find_gpu()
        self._cuda = load_cuda()
        call(self._cuda.cudaSetDevice(0))
        self.stream: int = int(call(self._cuda.cudaStreamCreate()))
        self._buffers: list[int] = []

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory on the GPU."""
        address = int(call(self._cuda.cudaMalloc(nbytes)))
        self._buffers.append(address)
        return address

    def upload(self, array: np.ndarray, address: int) -> None:
        """Begin to copy a contiguous array to the GPU; it must live until `wait` returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def download(self, address: int, array: np.ndarray) -> None:
        """Begin to fill a contiguous array from the GPU; it is whole when `wait` returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def wait(self) -> None:
        """Wait until all work of the stream is done."""
        call(self._cuda.cudaStreamSynchronize(self.stream))

    def used_bytes(self) -> int:
        """Return how much memory of the GPU is taken, by whomever."""
        free, total = call(self._cuda.cudaMemGetInfo())
        return int(total) - int(free)

    def free(self) -> None:
        """Give all buffers back."""
        while self._buffers:
            call(self._cuda.cudaFree(self._buffers.pop()))

    def _copy(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        call(self._cuda.cudaMemcpyAsync(to, source, nbytes, kind, self.stream))
