"""Clients of the shared server, the embedded engine to compare with, and a second repository whose model misbehaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper

from cat_serve.backends import open_backend
from cat_serve.backends.base import Backend, EngineOptions
from cat_serve.contract import Batch, Output, Precision
from cat_serve.images import encode_png, grid
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import GOLDEN_NAME, Artefact, Golden, Manifest, load_artefact, record
from export.triton import __main__ as triton
from export.triton_server.server import TritonServer
from tests.triton_clients import tensors

Ask = Callable[..., Any]


@pytest.fixture
def client(triton_server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(triton_server.grpc_url) as made:
        yield made


@pytest.fixture
def ask(client: grpc.InferenceServerClient) -> Ask:
    """Return a function that asks a model: ask("cat", class_=["bag"], seed=[1], outputs=["image"])."""

    def do(served: str, outputs: list[str] | None = None, **columns: Any) -> Any:
        wanted = outputs and [grpc.InferRequestedOutput(name) for name in outputs]
        return client.infer(served, tensors(grpc, columns), outputs=wanted)

    return do


@pytest.fixture(scope="session")
def shipped(project_root: Path) -> Artefact:
    return load_artefact(project_root / "model_repository" / "fashion-32" / "1")


@pytest.fixture(scope="session")
def embedded(shipped: Artefact) -> Callable[[Precision], Backend]:
    """Return the shipped model in this process, opened once for each precision."""
    opened: dict[Precision, Backend] = {}

    def get(precision: Precision = "fp32") -> Backend:
        if precision not in opened:
            options = EngineOptions(threads=1, precision=precision)
            opened[precision] = open_backend("onnxruntime", shipped, options)
        return opened[precision]

    return get


@pytest.fixture(scope="session")
def expected(embedded: Callable[[Precision], Backend], shipped: Artefact) -> Callable[..., Output]:
    """Return what the embedded engine makes of classes, seeds and psi."""

    def make(
        class_ids: list[int],
        seeds: list[int],
        psi: list[float] | float = 1.0,
        precision: Precision = "fp32",
    ) -> Output:
        z = latents_from_seeds(seeds, shipped.manifest.z_shape)
        column = np.broadcast_to(np.float32(psi), len(seeds)).astype(np.float32)
        return embedded(precision).run(Batch(z, np.array(class_ids, dtype=np.int64), column))

    return make


# --- a second repository ---------------------------------------------------------------------

STRIPES_CLASSES = ("flat", "stripes", "not ok", "crane", "crane")
STRIPES_MAX_BATCH = 4


def write_stripes(folder: Path) -> Artefact:
    """Write a model of 8 x 12 px: class 0 has one colour, class 2 is not ok, a class it lacks makes it fail."""
    batch, ramp = "batch", np.arange(8 * 12 * 3, dtype=np.float32).reshape(1, 8, 12, 3) % 250
    nodes = [
        helper.make_node("Gather", ["gain", "class_id"], ["gains"]),
        helper.make_node("Unsqueeze", ["gains", "axes"], ["columns"]),
        helper.make_node("Mul", ["ramp", "columns"], ["floats"]),
        helper.make_node("Cast", ["floats"], ["images"], to=TensorProto.UINT8),
        helper.make_node("Equal", ["class_id", "two"], ["bad"]),
        helper.make_node("Not", ["bad"], ["ok"]),
    ]
    constants = {
        "gain": np.array([0, 1, 1, 1, 1], np.float32),
        "axes": np.array([1, 2, 3], np.int64),
        "ramp": ramp,
        "two": np.array([2], np.int64),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stripes",
        [value("z", TensorProto.FLOAT, [batch, 6]), value("class_id", TensorProto.INT64, [batch]),
         value("truncation_psi", TensorProto.FLOAT, [batch])],
        [value("images", TensorProto.UINT8, [batch, 8, 12, 3]), value("ok", TensorProto.BOOL, [batch])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    folder.mkdir(parents=True)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / "model.onnx")
    (folder / GOLDEN_NAME).write_bytes(encode_png(grid(ramp.astype(np.uint8))))
    Manifest(
        model="stripes",
        files={
            "model.onnx": record(folder / "model.onnx", precision="fp32", determinism="bytes"),
            GOLDEN_NAME: record(folder / GOLDEN_NAME),
        },
        class_names=STRIPES_CLASSES,
        z_shape=(6,),
        image_size=(8, 12),
        max_batch=STRIPES_MAX_BATCH,
        golden=Golden(GOLDEN_NAME, (1,), (0,), (1.0,), {"fp32": 0}),
    ).save(folder)
    return load_artefact(folder)


@pytest.fixture(scope="session")
def second_repository(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in half precision with a queue of one request, and stripes, which waits for more rows."""
    folder = tmp_path_factory.mktemp("second") / "models"
    shutil.copytree(
        project_root / "model_repository" / "fashion-32" / "1", folder / "fashion-32" / "1"
    )
    write_stripes(folder / "stripes" / "1")
    narrow = ["--precision", "fp16", "--max-queue-size", "1", "--warm-up", "0"]
    assert triton.main([str(folder), "--model", "fashion-32", *narrow]) == 0
    assert (
        triton.main(
            [str(folder), "--model", "stripes", "--warm-up", "1", "3", "--queue-delay-us", "100000"]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="session")
def second_server(
    start_triton: Callable[..., TritonServer], second_repository: Path
) -> TritonServer:
    """A server of the second repository whose models can be loaded and unloaded."""
    return start_triton(second_repository, models=["fashion-32", "stripes", "cat"])


@pytest.fixture
def second_client(second_server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(second_server.grpc_url) as made:
        yield made
