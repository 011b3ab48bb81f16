"""From a folder of images to an artefact that can be served, by the commands that the documentation gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cat_serve.model.checkpoint import load_checkpoint
from training import prepare, train, train_vae


@pytest.mark.slow
def test_folder_of_images_becomes_a_model(
    write_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
    from cat_serve.contract import Batch
    from cat_serve.manifest import load_artefact
    from export import onnx

    names = ("ant", "bee", "cow", "dog", "elk")
    images = write_images(*(f"{name}/{number}.png" for name in names for number in range(4)))
    folder = ["--images", str(images), "--size", "32", "--workers", "0"]
    vae, data, run = (str(tmp_path / name) for name in ("my.vae", "data", "run"))
    small = ["--widths", "8", "8", "--batch-size", "8", "--total-nimg", "8", "--no-bf16"]
    assert train_vae.main([*folder, "--out", vae, *small]) == 0
    assert prepare.main([*folder, "--vae", vae, "--out", data]) == 0
    capsys.readouterr()
    arguments = ["--preset", "folder", "--name", "animals", "--data", data, "--vae", vae, "--run", run]  # fmt: skip
    assert train.main([*arguments, "--width", "24", "--batch-size", "8", "--total-nimg", "16"]) == 0
    out, err = capsys.readouterr()
    assert "folder follows the data: 5 classes, 4 channels, a grid of 16, gamma 0.1" in err
    checkpoint = load_checkpoint(Path(json.loads(out)["checkpoint"]))
    assert (checkpoint.name, checkpoint.class_names) == ("animals", names)
    assert str(images) not in json.dumps(checkpoint.training)  # where they lie is nobody's business

    path, repository = json.loads(out)["checkpoint"], tmp_path / "repository"
    quick = [
        "--precision",
        "fp32",
        "--studio-precision",
        "none",
        "--parity-classes",
        "2",
        "--max-batch",
        "4",
    ]
    assert onnx.main([path, "--repository", str(repository), *quick]) == 0
    artefact = load_artefact(repository / "animals" / "1")
    assert artefact.manifest.class_names == names
    z = np.zeros((1, *artefact.manifest.z_shape), np.float32)
    output = OnnxRuntimeBackend(artefact).run(
        Batch(z, np.array([4], np.int64), np.ones(1, np.float32))
    )
    assert output.images.shape == (1, 32, 32, 3)
