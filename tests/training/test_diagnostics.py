from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cat_serve.errors import InvalidInput
from cat_serve.latents import latents_from_seeds
from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
from cat_serve.model.generator import Generator
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig
from cat_serve.model.vae import load_vae
from training.diagnostics import diagnose, main, measure, summarise
from training.fashion_mnist import CLASS_NAMES


def one_sample(*stages: list[float]) -> torch.Tensor:
    """Return stages [1, K, 1, 1, W] of the values given."""
    return torch.tensor([[[[values]] for values in stages]])


def test_diagnostics_are_the_closed_forms() -> None:
    """h = (0, 0), (3, 0), (3, 4): rests of 5 and 4, steps of 3 and 4, cos(3-4-5 triangle) = 3/5."""
    found = diagnose(one_sample([0.0, 0.0], [3.0, 0.0], [3.0, 4.0]))
    assert found["distance"].tolist() == [[25 / 2, 16 / 2]]
    assert found["rewrite"].tolist() == [[9 / 2, 16 / 2]]
    assert found["direction"][0].tolist() == pytest.approx([3 / 5, 1])


def test_the_last_direction_is_one_and_refinement_on_a_line_always() -> None:
    random = torch.randn(5, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert diagnose(random)["direction"][:, -1].tolist() == pytest.approx([1] * 5)
    assert (diagnose(random)["direction"][:, :-1].abs() < 0.95).all()
    target = random[:, :1]
    line = torch.cat([target * share for share in (0.2, 0.5, 0.9, 1.0)], dim=1)
    assert diagnose(line)["direction"].flatten().tolist() == pytest.approx([1] * 15)


def test_a_step_away_from_the_final_stage_has_direction_minus_one() -> None:
    found = diagnose(one_sample([1.0], [-1.0], [4.0]))
    assert found["direction"].tolist() == [[-1, 1]]


def test_a_stage_that_does_not_move_has_no_direction_and_harms_no_mean() -> None:
    still = diagnose(torch.ones(1, 3, 1, 2, 2))
    assert still["distance"].tolist() == [[0, 0]]
    assert still["direction"].isnan().all()
    rows = summarise(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]]))
    assert (rows[0]["mean"], rows[0]["samples"]) == (2, 2)
    assert (rows[1]["mean"], rows[1]["samples"]) == (None, 0)


def test_the_standard_error_is_that_of_the_mean() -> None:
    row = summarise(np.array([[1.0], [2.0], [3.0], [6.0]]))[0]
    assert row["std"] == pytest.approx((14 / 3) ** 0.5)
    assert row["standard_error"] == pytest.approx((14 / 3) ** 0.5 / 2)
    assert row["quantiles"]["0.5"] == 2.5
    assert sum(row["ci95"]) / 2 == pytest.approx(3)


def test_one_stage_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one stage"):
        diagnose(torch.zeros(1, 1, 1, 1, 1))


@pytest.fixture(scope="module")
def checkpoints(
    vae_folder: Path, make_config, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = []
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        generator = Generator(make_config().generator)
        training = {"nimg": 1600, "seconds": 1800.0, "config": {"seed": 7}}
        checkpoint = Checkpoint(name, generator, load_vae(vae_folder), CLASS_NAMES, training)
        save_checkpoint(folder / f"{name}.safetensors", checkpoint)
        paths.append(folder / f"{name}.safetensors")
    return paths


def test_command_compares_checkpoints(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    labels = ["with", "without"]
    command = [*map(str, checkpoints), "--labels", *labels, "--samples", "21", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert json.loads((out / "diagnostics.json").read_text()) == report
    first, second = report["models"]
    assert (first["label"], first["model"], first["samples"]) == ("with", "one", 30)
    assert (first["training_nimg"], first["training_hours"], first["training_seed"]) == (1600, 0.5, 7)  # fmt: skip
    assert first["distance"][0]["mean"] != second["distance"][0]["mean"]
    assert f"| without | {second['distance'][0]['mean']:.4f} ± " in (out / "diagnostics.md").read_text()  # fmt: skip
    with Image.open(out / "diagnostics.png") as picture:
        assert picture.size == (1440, 456)


@torch.no_grad()
def test_figures_are_those_of_the_generator_itself(checkpoints: list[Path], tmp_path: Path) -> None:
    from cat_serve.model.checkpoint import load_checkpoint

    assert main([str(checkpoints[0]), "--samples", "20", "--out", str(tmp_path)]) == 0
    generator = load_checkpoint(checkpoints[0]).generator
    z = torch.from_numpy(latents_from_seeds([0, 1] * 10, (64,)))
    y = torch.arange(10).repeat_interleave(2)
    h = generator(z, y, stages=True).double()
    model = json.loads((tmp_path / "diagnostics.json").read_text())["models"][0]
    expected = (h[:, 0] - h[:, -1]).square().mean().item()
    assert model["distance"][0]["mean"] == pytest.approx(expected, rel=1e-5)
    assert model["rewrite"][1]["mean"] == pytest.approx(model["distance"][1]["mean"])


def test_a_generator_of_another_family_is_refused(vae_folder: Path) -> None:
    generator = OneStep(OneStepConfig(8, 2, 8, 2, 4, 4, 3, ((0, 0),)))
    checkpoint = Checkpoint("other", generator, load_vae(vae_folder), ("a", "b", "c"), {})
    with pytest.raises(InvalidInput, match="other has no stages"):
        measure(checkpoint, 2, "other")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--labels", "a", "b"], 2, "2 labels for 1 checkpoints"),
        (["--samples", "1"], 2, "has no spread"),
        ([], 1, "There is no checkpoint"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main([str(tmp_path / "none.safetensors"), "--out", str(tmp_path), *arguments]) == code
    assert message in capsys.readouterr().err
