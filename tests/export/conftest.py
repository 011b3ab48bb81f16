from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
from cat_serve.model.config import GeneratorConfig
from cat_serve.model.generator import Generator
from export import graphs
from export.onnx import ExportOptions, export
from training.train_vae import VaeTraining, build_vae

CLASS_NAMES = ("apple", "boat", "cat", "door", "egg")


def make_checkpoint(path: Path, seed: int = 0) -> Path:
    """Write a checkpoint of random weights, its gates and class means away from their first values."""
    torch.manual_seed(seed)
    config = GeneratorConfig(depth=3, width=32, heads=2, latent_size=8, num_classes=5)
    generator = Generator(config)
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    generator.w_avg.normal_()
    vae = build_vae(VaeTraining(widths=(8, 8, 8)), 32)
    vae.register_to_config(scaling_factor=0.5)
    save_checkpoint(
        path, Checkpoint("tiny-random", generator, vae.eval(), CLASS_NAMES, {"seed": seed})
    )
    return path


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-random.safetensors")


@pytest.fixture(scope="session")
def version_folder(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported tiny model, its studio in float32; tests must not change it."""
    options = ExportOptions(studio_precision="fp32")
    return export(checkpoint_path, tmp_path_factory.mktemp("repository"), options=options)


@pytest.fixture
def traced_before(version_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports of the tiny model take the graphs of `version_folder`: tracing takes most of an export."""

    def take(model: Any, example: Any, path: Path, external_data: bool) -> None:
        shutil.copy2(version_folder / path.name, path)

    monkeypatch.setattr(graphs, "write_graph", take)


@pytest.fixture(scope="session")
def shipped_folder(project_root: Path) -> Path:
    return project_root / "model_repository" / "fashion-32" / "1"


@pytest.fixture
def engine_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty engine cache, which commands use unless told otherwise; and no GPU, even where there is one."""
    folder = tmp_path / "engine-cache"
    monkeypatch.setenv("CAT_SERVE_ENGINE_CACHE", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


@pytest.fixture(scope="session")
def small_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of eleven nodes with the tensors of the contract, and a manifest; tests must not change it."""
    folder = tmp_path_factory.mktemp("small") / "small" / "1"
    folder.mkdir(parents=True)
    return write_small_graph(folder / "model.onnx")


@pytest.fixture(scope="session")
def write_graph() -> Any:
    """Return `write_small_graph`."""
    return write_small_graph


def write_small_graph(path: Path, batch: str | int = "batch", external: bool = False) -> Path:
    """Write a model that is no generator, but quick: images [B, 4, 4, 3] of z [B, 64], class and psi."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from cat_serve.manifest import Golden, Manifest, record

    weights = np.random.RandomState(0).randn(64, 48).astype(np.float32) * 20
    constants = {
        "weights": weights, "shape": np.array([-1, 4, 4, 3]), "axes": np.array([1, 2, 3]),
        "low": np.float32(0), "high": np.float32(255), "classes": np.int64(5),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("MatMul", ["z", "weights"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["x"]),
        node("Unsqueeze", ["truncation_psi", "axes"], ["psi"]),
        node("Mul", ["x", "psi"], ["scaled"]),
        node("Cast", ["class_id"], ["class"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["class", "axes"], ["shift"]),
        node("Add", ["scaled", "shift"], ["shifted"]),
        node("Clip", ["shifted", "low", "high"], ["clipped"]),
        node("Round", ["clipped"], ["rounded"]),
        node("Cast", ["rounded"], ["images"], to=TensorProto.UINT8),
        node("Less", ["class_id", "classes"], ["ok"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [tensor("z", TensorProto.FLOAT, [batch, 64]), tensor("class_id", TensorProto.INT64, [batch]),
         tensor("truncation_psi", TensorProto.FLOAT, [batch])],
        [tensor("images", TensorProto.UINT8, [batch, 4, 4, 3]), tensor("ok", TensorProto.BOOL, [batch])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.weights",
              size_threshold=1024)  # fmt: skip
    Manifest(
        model="small",
        files={path.name: record(path, precision="fp32", decoder_precision="fp32", determinism="bytes")},
        class_names=CLASS_NAMES,
        z_shape=(64,),
        image_size=(4, 4),
        max_batch=4,
        source={"checkpoint_sha256": "c" * 64}, golden=Golden("golden.png", (), (), (), {}),
    ).save(path.parent)  # fmt: skip
    return path
