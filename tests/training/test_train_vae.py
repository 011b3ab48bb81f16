"""The VAE's training: it resumes, measures its own scale, and says when it cannot go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve.errors import CheckpointError, TrainingDiverged
from cat_serve.model.decoder import load_vae
from training.train_vae import VaeTraining, build_vae, learning_rate, main, measure, to_unit, train

Photographs = tuple[np.ndarray, np.ndarray]
CONFIG = VaeTraining(widths=(8, 8), batch_size=8, total_nimg=40, warmup_nimg=16)


class Interrupting:
    """Photographs that end the run when batch number `after` is asked for."""

    def __init__(self, images: np.ndarray, after: int) -> None:
        self.images, self.left = images, after
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.images[index]


def assert_same_weights(vae: AutoencoderKL, other: AutoencoderKL) -> None:
    for key, tensor in vae.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize("bf16", [True, False])
def test_killed_training_equals_uninterrupted_training(
    photographs: Photographs, tmp_path: Path, bf16: bool
) -> None:
    config, (images, _) = replace(CONFIG, bf16=bf16), photographs
    whole = train(config, images, tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(config, Interrupting(images, 3), cut, state_seconds=-1)  # type: ignore[arg-type]
    assert torch.load(cut / "vae-state.pt", weights_only=True)["nimg"] == 24
    assert_same_weights(train(config, images, cut), whole)


def test_other_settings_do_not_resume(photographs: Photographs, tmp_path: Path) -> None:
    train(CONFIG, photographs[0], tmp_path, state_seconds=-1)
    with pytest.raises(CheckpointError, match="kl_weight"):
        train(replace(CONFIG, kl_weight=0.1), photographs[0], tmp_path)


def test_training_lowers_the_reconstruction_error(photographs: Photographs, tmp_path: Path) -> None:
    images, _ = photographs
    torch.manual_seed(CONFIG.seed)
    untrained = build_vae(CONFIG, 32).eval()
    trained = train(replace(CONFIG, lr=5e-3, total_nimg=160), images, tmp_path).eval()
    assert measure(trained, images)[1] > measure(untrained, images)[1] + 3  # dB


def test_diverged_training_is_reported(photographs: Photographs, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="lower --lr"):
        train(replace(CONFIG, lr=1e30), photographs[0], tmp_path)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = VaeTraining(lr=2.0, batch_size=10, warmup_nimg=100, total_nimg=1000)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 90) == pytest.approx(1 + math.cos(math.pi * 0.09))
    assert learning_rate(config, 500) == pytest.approx(1.0)
    assert learning_rate(config, 1000) == pytest.approx(0.0)


def test_bytes_map_to_minus_one_and_one() -> None:
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3, 1).repeat(3, axis=3)
    unit = to_unit(images)
    assert unit.shape == (1, 3, 1, 3)
    torch.testing.assert_close(unit[0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_measure_gives_the_spread_of_latents_and_the_psnr(photographs: Photographs) -> None:
    images, _ = photographs
    vae = build_vae(CONFIG, 32).eval()
    with torch.no_grad():
        posterior = vae.encode(to_unit(images)).latent_dist
        x_hat = vae.decode(posterior.mean).sample
    variance = posterior.mean.var() + posterior.var.mean()  # of draws, by the law of total variance
    error = ((x_hat + 1) / 2 - (to_unit(images) + 1) / 2).square().mean()
    std, psnr_db = measure(vae, images, batch_size=7)
    assert std == pytest.approx(float(variance.sqrt()), rel=0.02)
    assert psnr_db == pytest.approx(-10 * math.log10(float(error)), abs=0.01)  # peak 1


def test_command_writes_a_vae_that_knows_its_scale(
    idx_folder: Path,
    photographs: Photographs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "small.vae"
    arguments = ["--data", str(idx_folder), "--out", str(out), "--widths", "8", "8"]
    assert main([*arguments, "--batch-size", "8", "--total-nimg", "16"]) == 0
    report = json.loads(capsys.readouterr().out)
    scaling_factor = json.loads((out / "config.json").read_text())["scaling_factor"]
    assert scaling_factor == report["scaling_factor"]
    with torch.no_grad():
        posterior = load_vae(out).encode(to_unit(photographs[0])).latent_dist
    draws = torch.cat([posterior.sample() for _ in range(8)]) * scaling_factor
    assert float(draws.std()) == pytest.approx(1.0, abs=0.02)


def test_command_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "small.vae")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: Fashion-MNIST is not here")
    assert not any(tmp_path.iterdir())
