"""Running an engine: buffers, batches and failures on the CPU, and what is refused before a GPU is needed.

No engine runs without a GPU. Here TensorRT's engine and context are played by ONNX Runtime, which finds its inputs and
leaves its outputs where the runner's addresses say; dtypes, modes and everything else are TensorRT-RTX's own.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as rtx

from cat_serve.contract import Batch, StudioBatch
from cat_serve.errors import ArtefactError, BackendError, InvalidInput, MissingDependency
from export.graphs import onnx_engine
from export.probes import in_batches, rows
from export.trt.__main__ import main
from export.trt.device import call, find_gpu
from export.trt.parity import probe_of
from export.trt.runner import TrtEngine, open_engine

DTYPES = {
    "tensor(float)": rtx.DataType.FLOAT,
    "tensor(int64)": rtx.DataType.INT64,
    "tensor(uint8)": rtx.DataType.UINT8,
    "tensor(bool)": rtx.DataType.BOOL,
}


class HostDevice:
    """A device whose memory is the host's; what is written past a buffer's end is noticed."""

    stream = 7

    def __init__(self) -> None:
        self.buffers: dict[int, Any] = {}
        self.waits = 0

    def allocate(self, nbytes: int) -> int:
        buffer = ctypes.create_string_buffer(nbytes)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def upload(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, address: int, array: np.ndarray) -> None:
        assert array.nbytes <= len(self.buffers[address])
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self) -> None:
        self.waits += 1

    def free(self) -> None:
        self.buffers.clear()


class OnnxAsTensorRT:
    """An ICudaEngine and its IExecutionContext, computed by ONNX Runtime."""

    def __init__(self, graph: Path, batches: tuple[int, int, int] = (1, 2, 4)) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = {each.name: each for each in (*outputs, *inputs)}  # in no useful order
        self._inputs = [each.name for each in inputs]
        self._batches = batches
        self.num_io_tensors = len(self._tensors)
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.works = True

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return rtx.TensorIOMode.INPUT if name in self._inputs else rtx.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DTYPES[self._tensors[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self._tensors[name].shape[1:])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(size, *self._tensors[name].shape[1:]) for size in self._batches]

    def create_execution_context(self) -> OnnxAsTensorRT:
        return self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return self._batches[0] <= shape[0] <= self._batches[-1]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostDevice.stream
        feeds = {name: self._view(name, self.shapes[name]).copy() for name in self._inputs}
        outputs = [name for name in self._tensors if name not in self._inputs]
        for name, array in zip(outputs, self._session.run(outputs, feeds), strict=True):
            self._view(name, array.shape)[...] = array
        return self.works

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(rtx.nptype(self.get_tensor_dtype(name)))
        nbytes = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * nbytes).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def runner(graph: Path, batches: tuple[int, int, int] = (1, 2, 4)) -> tuple[TrtEngine, Any, Any]:
    played, device = OnnxAsTensorRT(graph, batches), HostDevice()
    return TrtEngine(rtx, played, device, SimpleNamespace(errors=[])), played, device


@pytest.fixture
def batch() -> Batch:
    probe = probe_of({"num_classes": 5, "z_shape": [64]}, False)
    assert isinstance(probe, Batch)
    return probe


def test_images_are_those_of_the_graph_in_every_batch(small_graph: Path, batch: Batch) -> None:
    engine, _, device = runner(small_graph)
    expected = onnx_engine(small_graph)(batch)
    for size in (4, 3, 1, 2):
        output = in_batches(engine, batch, size)
        np.testing.assert_array_equal(output.images, expected.images)
        np.testing.assert_array_equal(output.ok, expected.ok)
        assert (output.images.dtype, output.ok.dtype) == (np.uint8, np.bool_)
    assert device.waits == sum(-(-len(batch) // size) for size in (4, 3, 1, 2))


def test_buffers_are_allocated_once_for_the_largest_batch(small_graph: Path, batch: Batch) -> None:
    engine, _, device = runner(small_graph)
    sizes = sorted(len(buffer) for buffer in device.buffers.values())
    assert sizes == sorted([4 * 64 * 4, 4 * 8, 4 * 4, 4 * 48, 4])
    in_batches(engine, batch, 2)
    assert len(device.buffers) == 5
    engine.close()
    assert device.buffers == {}


def test_arrays_are_converted_and_need_not_be_contiguous(small_graph: Path, batch: Batch) -> None:
    engine, _, _ = runner(small_graph)
    wide = np.zeros((4, 128), np.float64)
    wide[:, ::2] = batch.z[:4]
    other = Batch(wide[:, ::2], batch.class_id[:4].astype(np.int32), batch.truncation_psi[:4])
    expected = onnx_engine(small_graph)(rows(batch, slice(4)))
    np.testing.assert_array_equal(engine(other).images, expected.images)


def test_studio_gives_every_stage(shipped_folder: Path) -> None:
    engine, _, _ = runner(shipped_folder / "studio.onnx", (1, 1, 2))
    probe = rows(probe_of({"num_classes": 10, "z_shape": [64]}, True), slice(2))
    assert isinstance(probe, StudioBatch)
    output: Any = engine(probe)
    expected: Any = onnx_engine(shipped_folder / "studio.onnx")(probe)
    np.testing.assert_array_equal(output.stage_images, expected.stage_images)
    np.testing.assert_array_equal(output.images, expected.images)


@pytest.mark.parametrize("size", [1, 5])
def test_batch_outside_the_profile_is_refused(small_graph: Path, batch: Batch, size: int) -> None:
    engine, _, _ = runner(small_graph, (2, 3, 4))
    with pytest.raises(InvalidInput, match=f"takes 2 to 4 rows, not {size}"):
        engine(rows(batch, slice(size)))


def test_tensors_of_another_model_are_refused(small_graph: Path, batch: Batch) -> None:
    engine, _, _ = runner(small_graph)
    two = rows(batch, slice(2))
    with pytest.raises(InvalidInput, match="The engine takes"):
        engine(Batch(two.z[:, :32], two.class_id, two.truncation_psi))
    with pytest.raises(InvalidInput, match="The engine takes"):
        engine(StudioBatch.of(two))


def test_failure_says_what_tensorrt_said(small_graph: Path, batch: Batch) -> None:
    played = OnnxAsTensorRT(small_graph)
    log = SimpleNamespace(errors=["first", "CUDA out of memory"])
    engine = TrtEngine(rtx, played, HostDevice(), log)
    played.works = False
    with pytest.raises(BackendError, match="TensorRT failed: CUDA out of memory"):
        engine(rows(batch, slice(2)))


def test_threads_do_not_mix_their_batches(small_graph: Path, batch: Batch) -> None:
    engine, _, _ = runner(small_graph)
    expected = onnx_engine(small_graph)(batch).images
    wrong: list[int] = []

    def ask(row: int) -> None:
        for _ in range(20):
            images = engine(rows(batch, slice(row, row + 2))).images
            if not np.array_equal(images, expected[row : row + 2]):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- before a GPU is needed ------------------------------------------------------------------


def test_machine_without_a_gpu_says_so(engine_cache: Path) -> None:
    with pytest.raises(MissingDependency, match="no NVIDIA GPU here that can be used: ") as caught:
        find_gpu()
    assert "nvidia-smi" in str(caught.value.hint)


def test_cuda_error_is_raised_by_its_name() -> None:
    from cuda.bindings import runtime

    success, failure = (
        runtime.cudaError_t.cudaSuccess,
        runtime.cudaError_t.cudaErrorMemoryAllocation,
    )
    assert call((success,)) == ()
    assert call((success, 3)) == 3
    assert call((success, 3, 4)) == (3, 4)
    with pytest.raises(BackendError, match="CUDA failed: cudaErrorMemoryAllocation"):
        call((failure, None))


def test_engine_is_checked_before_it_is_opened(
    small_graph: Path, engine_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.engine"
    assert main([str(small_graph), "--builder", "tensorrt-rtx", "--out", str(out)]) == 0
    with pytest.raises(MissingDependency, match="no NVIDIA GPU"):
        open_engine(out)
    out.write_bytes(out.read_bytes() + b"x")
    with pytest.raises(ArtefactError, match=r"small\.engine is not the engine that was built"):
        open_engine(out)
    with pytest.raises(ArtefactError, match="has no record"):
        open_engine(small_graph)
