from __future__ import annotations

import json
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
from cat_serve.model.generator import Generator
from cat_serve.model.vae import load_vae
from cat_serve.quality.inception import InceptionFeatures, inception_score
from training.data import Latents
from training.evaluate import main
from training.evaluation.measures import METRICS
from training.evaluation.run import Evaluation
from training.evaluation.sampling import Subject
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


class Pooled(nn.Module):
    """Stands for the Inception network: the same calls, twelve features of bytes, or as many classes."""

    def forward(
        self, images: Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        if return_features:
            return features
        assert no_output_bias
        return (features / 10).softmax(1)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file as the user would name it."""
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pooled()).save(str(path))
    return path


@pytest.fixture(scope="module")
def command(
    checkpoint_path: Path, twofold: Path, inception: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """An evaluation of a random generator: random labels and a truncation beside the usual samples."""
    out = tmp_path_factory.mktemp("evaluation")
    return [
        str(checkpoint_path), "--data", str(twofold), "--out", str(out), "--per-class", "2",
        "--vae", str(checkpoint_path), "--card", str(out / "card.md"),
        "--inception", str(inception), "--psi", "1", "0.5", "--labels", "balanced", "random", "--metrics", *METRICS,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(command: list[str]) -> tuple[Path, dict[str, Any]]:
    """What that evaluation wrote, and its figures."""
    assert main(command) == 0
    out = Path(command[command.index("--out") + 1])
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
    assert figures["images"] == 20
    by_class = figures["recognised_by_class"]
    assert list(by_class) == list(CLASS_NAMES)
    assert figures["recognised"] == pytest.approx(np.mean(list(by_class.values())))
    sizes = {"samples": (2, 10), "interpolation": (12, 10), "truncation": (15, 10)}
    for name, (columns, rows) in sizes.items():
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (columns * 32 * 2, rows * 32 * 2)
    for name in ("confusion", "neighbours", "distances", "psi"):
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 5


def test_truncation_ends_at_the_class_mean_and_paths_at_their_seeds(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    """At psi = 0 all seeds give one image; a strip begins and ends with the first two samples of its class."""
    out, _ = evaluated
    truncation, strip, samples = (
        np.asarray(Image.open(out / f"{name}.png").convert("RGB")).reshape(10, 64, -1, 64, 3)
        for name in ("truncation", "interpolation", "samples")
    )
    assert (truncation[:, :, 0] == truncation[:, :, 5]).all()
    assert (truncation[:, :, 4] == samples[:, :, 0]).all()
    assert (truncation[:, :, 9] == samples[:, :, 1]).all()
    assert (truncation[:, :, 0] != truncation[:, :, 4]).any()
    assert np.abs(strip[:, :, 0].astype(int) - samples[:, :, 0]).max() <= 1
    assert np.abs(strip[:, :, -1].astype(int) - samples[:, :, 1]).max() <= 1


def test_photographs_are_at_no_distance_from_themselves(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    """Training and test photographs are the same here; reconstructions and random images are not."""
    figures = evaluated[1]
    frechet = figures["fid"]
    assert frechet["real"] == pytest.approx(0, abs=0.01)
    assert min(frechet["reconstructions"], frechet["generated"]) > 1
    assert figures["manifolds"]["real"]["precision"] == figures["manifolds"]["real"]["recall"] == 1
    assert figures["manifolds"]["generated"]["precision"] < 0.5
    assert figures["kid"]["generated"] > figures["kid"]["real"]
    score = figures["inception_score"]
    assert 1 < score["generated"] < 12
    assert score["real"] != score["generated"]
    assert figures["neighbours"]["unseen"]["median"] == pytest.approx(0, abs=1e-3)
    assert figures["neighbours"]["nearer_than_unseen"] == 0


def test_settings_stand_beside_each_other(evaluated: tuple[Path, dict[str, Any]]) -> None:
    out, figures = evaluated
    rows = figures["settings"]
    drawn = [(row["labels"], row["truncation_psi"]) for row in rows]
    assert drawn == [("balanced", 1), ("balanced", 0.5), ("random", 1), ("random", 0.5)]
    assert rows[0]["fd"] == figures["fid"]["generated"]
    assert rows[0]["recognised"] == figures["recognised"]
    assert rows[1]["pair_distance"] < rows[0]["pair_distance"]  # truncation costs variety
    table = (out / "evaluation.md").read_text()
    assert f"| random | 0.5 | 20 | {rows[3]['recognised']:.1%} |" in table


def test_the_card_says_what_was_measured(
    evaluated: tuple[Path, dict[str, Any]], command: list[str]
) -> None:
    out, figures = evaluated
    card = (out / "card.md").read_text()
    assert f"Version {figures['version']}: trained on 1,600 images in 0.5 hours (seed 7)" in card
    assert f"| **{figures['recognised']:.1%}** |" in card
    assert f"(**{figures['pair_distance']['ratio']:.0%}**)" in card
    assert f"| ankle boot | {figures['recognised_by_class']['ankle boot']:.1%} |" in card
    assert figures["command"] == shlex.join(["python", "-m", "training.evaluate", *command])
    assert f"hours by `{figures['command']}`" in card


def test_the_same_command_again_makes_and_trains_nothing(
    evaluated: tuple[Path, dict[str, Any]], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object, **_more: object) -> None:
        raise AssertionError("this was kept")

    monkeypatch.setattr(Subject, "generate", never)
    monkeypatch.setattr(InceptionFeatures, "__call__", never)
    monkeypatch.setattr("cat_serve.quality.classifier.train_classifier", never)
    monkeypatch.setattr("training.vae.reconstruct", never)
    assert main(command) == 0
    again = json.loads((evaluated[0] / "evaluation.json").read_text())
    changing = ("seconds", "hours")
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in evaluated[1].items() if k not in changing
    }


def test_samples_made_elsewhere_have_the_same_figures(
    evaluated: tuple[Path, dict[str, Any]], twofold: Path, inception: Path, tmp_path: Path
) -> None:
    """The layout of `cat-serve generate --out X.npz`."""
    (kept,) = (
        path for path in evaluated[0].glob("kept/generate-*")
        if '"balanced"' in (path / "key.json").read_text() and '"psi": 1.0' in (path / "key.json").read_text()
    )  # fmt: skip
    images = np.concatenate([np.load(piece) for piece in sorted(kept.glob("*.npy"))])
    samples = tmp_path / "samples.npz"
    np.savez(samples, images, np.repeat(np.arange(10), 2))
    out = tmp_path / "out"
    command = [str(samples), "--data", str(twofold), "--out", str(out), "--card", str(out / "card.md")]  # fmt: skip
    command += ["--inception", str(inception)]
    assert main([*command, "--metrics", "pairs", "fd"]) == 0
    figures = json.loads((out / "evaluation.json").read_text())
    expected = evaluated[1]
    assert figures["fid"]["generated"] == pytest.approx(expected["fid"]["generated"])  # fmt: skip
    assert figures["pair_distance"] == pytest.approx(expected["pair_distance"])
    assert "Version samples " in (out / "card.md").read_text()
    assert not (out / "interpolation.png").exists()
    assert main([*command, "--psi", "0.5"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "8"], "belong to --images"),
        (["--images", "a", "--reference", "b"], "two data sets"),
        (["--images", "a"], "--images needs --size"),
        (["--samples", "9", "--per-class", "1"], "both say how many"),
        (["--searched", "0"], "finds nothing"),
        (["--psi", "2"], "is no truncation"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(
    checkpoint_path: Path,
    idx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    command = [str(checkpoint_path), "--data", str(idx_folder), "--out", str(tmp_path)]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err


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
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    required: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(Evaluation, "run", lambda _: evaluated[1])
    assert main([*command, "--require", required]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert code or json.loads(captured.out.splitlines()[-1]) == evaluated[1]
    assert "| figure | samples | photographs | reconstructions |" in captured.out


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


@pytest.mark.slow
def test_without_an_inception_network_figures_are_named_after_efficientnet(
    checkpoint_path: Path, idx_folder: Path, tmp_path: Path
) -> None:
    command = [str(checkpoint_path), "--data", str(idx_folder), "--out", str(tmp_path)]
    assert main([*command, "--samples", "10", "--metrics", "fd", "kd", "neighbours"]) == 0
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["features"] == "EffNetLite0"
    assert figures["fd_effnet_lite0"]["generated"] > figures["fd_effnet_lite0"]["real"] > 0
    assert figures["kd_effnet_lite0"]["generated"] > figures["kd_effnet_lite0"]["real"]
    assert not {"fid", "kid"} & figures.keys()
    assert "FID" not in (tmp_path / "evaluation.md").read_text()


def test_adms_moments_are_what_an_fid_is_measured_to(
    checkpoint_path: Path, inception: Path, tmp_path: Path
) -> None:
    """Samples against a file whose moments are those of other images than it holds."""
    samples, reference = tmp_path / "samples.npz", tmp_path / "VIRTUAL.npz"
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(samples, images)
    features = InceptionFeatures(inception)(images).double()
    np.savez(reference, arr_0=255 - images, mu=features.mean(0) + 3, sigma=features.T.cov())
    command = [str(samples), "--reference", str(reference), "--inception", str(inception)]
    assert main([*command, "--metrics", "fd", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["fid"]["generated"] == pytest.approx(12 * 3**2, rel=1e-4)
    assert figures["photographs"] == 40


def test_adms_file_is_measured_against_end_to_end(
    checkpoint_path: Path, inception: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model against a file of ADM's layout: images, labels and both pairs of moments.

    With random and with balanced labels; the FID is to the moments in the file, the Inception Score that of its images.
    """
    images = np.random.RandomState(0).randint(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    features = InceptionFeatures(inception)(images).double()
    arrays = {"arr_0": images, "arr_1": np.arange(30), "mu": features.mean(0), "sigma": features.T.cov()}  # fmt: skip
    reference = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    np.savez(reference, **arrays, mu_s=np.zeros(2), sigma_s=np.eye(2))
    out = tmp_path / "out"
    command = [str(checkpoint_path), "--reference", str(reference), "--out", str(out), "--samples", "20",
               "--labels", "random", "balanced", "--metrics", "fd", "manifolds", "is"]  # fmt: skip
    assert main([*command, "--inception", str(inception)]) == 0
    figures = json.loads((out / "evaluation.json").read_text())
    assert (figures["images"], figures["photographs"], figures["labels"]) == (20, 30, "random")
    made = np.concatenate([np.load(path) for path in sorted(out.glob("kept/generate-*/*.npy"))])
    assert made.shape == (40, 32, 32, 3)
    expected = figures["fid"]["generated"]
    assert expected > 1
    assert [row["labels"] for row in figures["settings"]] == ["random", "balanced"]
    assert figures["settings"][0]["fd"] == expected != figures["settings"][1]["fd"]
    uniform = InceptionFeatures(inception).probabilities(images)
    assert figures["inception_score"]["real"] == pytest.approx(inception_score(uniform)["mean"])
    assert "Inception Score" in (out / "evaluation.md").read_text()
    capsys.readouterr()
    assert main(command) == 2  # without the network there is no such score
    assert "needs Inception's classes" in capsys.readouterr().err


def test_what_is_no_inception_network_is_one_clear_line(
    checkpoint_path: Path, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_path), "--data", str(idx_folder), "--out", str(tmp_path)]
    assert main([*command, "--inception", str(checkpoint_path)]) == 1
    assert "is no TorchScript" in capsys.readouterr().err
    assert main([*command, "--inception", str(tmp_path / "none.pt")]) == 1
    assert "There is no network" in capsys.readouterr().err
