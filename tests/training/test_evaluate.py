from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cat_serve.contract import Batch, Output
from cat_serve.errors import BadOutput
from cat_serve.latents import latent_from_seed
from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
from cat_serve.model.decoder import load_vae
from cat_serve.model.generator import Generator
from training.data import Latents
from training.evaluate import generate, main
from training.fashion_mnist import CLASS_NAMES
from training.prepare import main as prepare


@pytest.fixture(scope="module")
def checkpoint_path(
    vae_folder: Path, make_config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    generator = Generator(make_config().generator)
    save_checkpoint(path, Checkpoint("tiny", generator, load_vae(vae_folder), CLASS_NAMES))
    return path


def echo(batch: Batch) -> Output:
    """Paint the class into the first channel and a trace of z and psi into the others."""
    images = np.zeros((len(batch), 4, 4, 3), dtype=np.uint8)
    images[..., 0] = batch.class_id[:, None, None]
    images[..., 1] = (np.abs(batch.z[:, 0]) * 50).astype(np.uint8)[:, None, None]
    images[..., 2] = (batch.truncation_psi * 100).astype(np.uint8)[:, None, None]
    return Output(images, np.ones(len(batch), dtype=bool))


def test_every_class_gets_the_same_seeds() -> None:
    images, labels = generate(echo, num_classes=3, z_shape=(4,), per_class=60, psi=0.5)
    assert labels.tolist() == [0] * 60 + [1] * 60 + [2] * 60
    assert (images[:, 0, 0, 0] == labels).all()
    seeds = [int(abs(latent_from_seed(seed, (4,))[0]) * 50) for seed in range(60)]
    assert images[:, 0, 0, 1].tolist() == seeds * 3
    assert (images[..., 2] == 50).all()


def test_an_image_that_is_not_ok_is_never_counted() -> None:
    def broken(batch: Batch) -> Output:
        output = echo(batch)
        output.ok[-1] = batch.class_id[0] != 1
        return output

    with pytest.raises(BadOutput, match=r"Class 1, seeds \[6\]"):
        generate(broken, num_classes=3, z_shape=(4,), per_class=7, psi=1.0)


def test_figures_are_those_of_the_pictures(
    checkpoint_path: Path, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_path), "--data", str(idx_folder), "--out", str(tmp_path)]
    assert main([*command, "--per-class", "4"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["images"] == 40
    by_class = figures["recognised_by_class"]
    assert list(by_class) == list(CLASS_NAMES)
    assert figures["recognised"] == pytest.approx(np.mean(list(by_class.values())))
    with Image.open(tmp_path / "samples.png") as samples:
        assert samples.size == (4 * 32 * 2, 10 * 32 * 2)
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_too_small_a_share_fails(
    checkpoint_path: Path, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_path), "--data", str(idx_folder), "--out", str(tmp_path)]
    assert main([*command, "--per-class", "2", "--require", "1.01"]) == 1
    assert "are required" in capsys.readouterr().err
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 20


def test_a_missing_model_is_one_clear_line(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.safetensors"
    assert main([str(path), "--data", str(idx_folder), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint")


def test_a_checkpoint_serves_as_the_vae_it_holds(
    checkpoint_path: Path, vae_folder: Path, idx_folder: Path, tmp_path: Path
) -> None:
    """Latents prepared with either are the same, so a run can go on from a checkpoint alone."""
    indices = []
    for name, vae in (("folder", vae_folder), ("checkpoint", checkpoint_path)):
        command = ["--data", str(idx_folder), "--vae", str(vae), "--out", str(tmp_path / name)]
        assert prepare(command) == 0
        indices.append(Latents(tmp_path / name))
    folder, checkpoint = indices
    assert folder.index == checkpoint.index
    every = torch.arange(len(folder))
    assert torch.equal(folder.moments(every), checkpoint.moments(every))
