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

    def take(model: Any, example: Any, path: Path) -> None:
        shutil.copy2(version_folder / path.name, path)

    monkeypatch.setattr(graphs, "write_graph", take)


@pytest.fixture(scope="session")
def shipped_folder(project_root: Path) -> Path:
    return project_root / "model_repository" / "fashion-32" / "1"
