"""The report on weights: a trained model passes, and each way of being wrong is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cat_serve.images import decode_png
from cat_serve.model.checkpoint import Checkpoint, load_checkpoint
from export.check_weights import build_parser, inputs, main, reference
from export.weights_report import failures, image_statistics

CLASSES = (1, 5, 8)
SEEDS = 3


@pytest.fixture(scope="module")
def shipped(project_root: Path) -> Checkpoint:
    return load_checkpoint(project_root / "checkpoints" / "fashion-32.safetensors")


def found(checkpoint: Checkpoint) -> list[str]:
    """Return what is wrong with a checkpoint's images, its graphs aside."""
    output, _ = reference(checkpoint, inputs(checkpoint, CLASSES, SEEDS))
    images = image_statistics(output, len(CLASSES), SEEDS)
    return failures({"images": images, "parity": {}})


def test_a_trained_model_passes_with_sensible_figures(shipped: Checkpoint) -> None:
    output, generated = reference(shipped, inputs(shipped, CLASSES, SEEDS))
    images = image_statistics(output, len(CLASSES), SEEDS)
    assert failures({"images": images, "parity": {}}) == []
    assert images["ok"] == images["count"] == 9
    assert images["classes_apart_levels"] > images["seeds_apart_levels"] > 3
    assert 0.5 < generated["std"] < 2  # latents are normalised


def test_seeds_are_those_of_the_service(shipped: Checkpoint) -> None:
    from cat_serve.latents import latent_from_seed

    batch = inputs(shipped, CLASSES, SEEDS)
    assert batch.class_id.tolist() == [1, 1, 1, 5, 5, 5, 8, 8, 8]
    for row, seed in enumerate([0, 1, 2] * 3):
        np.testing.assert_array_equal(batch.z[row], latent_from_seed(seed, (64,)))


@pytest.mark.parametrize("broken", ["class", "z", "nan", "silent"])
def test_every_way_of_being_wrong_is_named(shipped: Checkpoint, broken: str) -> None:
    checkpoint = copy.deepcopy(shipped)
    mapping = checkpoint.generator.mapping
    with torch.no_grad():
        if broken == "class":
            mapping.class_embedding.copy_(mapping.class_embedding[:1].clone())
        elif broken == "z":
            mapping.first.weight[:, mapping.class_embedding.shape[1] :] = 0
        elif broken == "nan":
            mapping.class_embedding[CLASSES[1]] = torch.nan
        else:
            checkpoint.vae.decoder.conv_out.weight.zero_()
    said = {
        "class": "Images hardly depend on classes",
        "z": "Images hardly depend on seeds",
        "nan": "3 of 9 images are not ok",
        "silent": "An image is of one colour",
    }[broken]
    assert any(said in sentence for sentence in found(checkpoint))


@pytest.mark.slow
def test_command_writes_grid_and_report(
    project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = project_root / "checkpoints" / "fashion-32.safetensors"
    out = tmp_path / "made" / "here"
    command = [str(checkpoint), "--out", str(out), "--classes", "1", "5", "--seeds", "2"]
    assert main(command) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["passed"]
    assert set(report["parity"]) == {"fp32", "fp16"}
    assert report["parity"]["fp32"]["difference"]["max_levels"] <= 1
    assert decode_png((out / "grid.png").read_bytes()).shape == (64, 64, 3)
    text = (out / "report.md").read_text()
    assert text in printed.err
    assert "| fp16: ONNX Runtime against torch | PSNR" in text
    assert "Nothing failed." in text


def test_classes_that_are_not_there_are_a_usage_error(
    project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = project_root / "checkpoints" / "fashion-32.safetensors"
    assert main([str(checkpoint), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "fashion-32 has classes 0 to 9, not 207, 360, 387, 974" in said
    assert "--classes" in said


def test_defaults_are_the_four_classes_that_papers_show() -> None:
    arguments = build_parser().parse_args(["x.safetensors"])
    assert tuple(arguments.classes) == (207, 360, 387, 974)
