from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cat_serve.contract import Batch, Output
from cat_serve.errors import BadOutput
from cat_serve.latents import latent_from_seed
from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
from cat_serve.model.generator import Generator
from cat_serve.model.vae import load_vae
from training import evaluate as evaluation
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
    training = {"nimg": 1600, "seconds": 1800.0, "config": {"seed": 7}}
    save_checkpoint(
        path, Checkpoint("tiny", generator, load_vae(vae_folder), CLASS_NAMES, training)
    )
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


@pytest.fixture(scope="module")
def evaluated(
    checkpoint_path: Path, twofold: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """What one evaluation of a random generator wrote, and its figures."""
    out = tmp_path_factory.mktemp("evaluation")
    command = [str(checkpoint_path), "--data", str(twofold), "--out", str(out), "--per-class", "4"]
    assert main([*command, "--vae", str(checkpoint_path), "--card", str(out / "card.md")]) == 0
    return out, json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def twofold(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose test photographs are its training ones: two of each class and more."""
    folder = tmp_path_factory.mktemp("twofold")
    for path in idx_folder.glob("train-*"):
        for prefix in ("train", "t10k"):
            shutil.copy(path, folder / path.name.replace("train", prefix, 1))
    return folder


def test_figures_are_those_of_the_pictures(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, figures = evaluated
    assert figures["images"] == 40
    by_class = figures["recognised_by_class"]
    assert list(by_class) == list(CLASS_NAMES)
    assert figures["recognised"] == pytest.approx(np.mean(list(by_class.values())))
    with Image.open(out / "samples.png") as samples:
        assert samples.size == (4 * 32 * 2, 10 * 32 * 2)
    assert (out / "confusion.png").stat().st_size > 1000


def test_photographs_are_at_no_distance_from_themselves(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    """Training and test photographs are the same here; reconstructions and random images are not."""
    frechet = evaluated[1]["fd_effnet_lite0"]
    assert frechet["real"] == pytest.approx(0, abs=0.01)
    assert min(frechet["reconstructions"], frechet["generated"]) > 1


def test_the_card_says_what_was_measured(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, figures = evaluated
    card = (out / "card.md").read_text()
    assert f"Version {figures['version']}: trained on 1,600 images in 0.5 hours (seed 7)" in card
    assert f"| **{figures['recognised']:.1%}** |" in card
    assert f"**{figures['pair_distance']['ratio']:.0%}** of that of photographs" in card
    assert f"| ankle boot | {figures['recognised_by_class']['ankle boot']:.1%} |" in card


@pytest.mark.parametrize(
    ("required", "code", "message"),
    [
        ("pair_distance.ratio=0.0", 0, ""),
        ("recognised=1.01", 1, "at least 1.01 is required"),
        ("beauty=0.5", 2, "There is no figure 'beauty'"),
    ],
)
def test_figures_are_held_to_what_is_required(
    evaluated: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    required: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments: evaluated[1])
    assert main(["model", "--require", required]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert code or json.loads(captured.out) == evaluated[1]


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
