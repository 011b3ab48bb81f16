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
from training.train_vae import (
    VaeTraining,
    build_vae,
    learning_rate,
    main,
    measure_latents,
    psnr_db,
    reconstruct,
    save_vae,
    to_unit,
    train,
)

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
    better, worse = (psnr_db(images, reconstruct(vae, images)) for vae in (trained, untrained))
    assert better > worse + 3


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


def test_mean_and_spread_of_each_latent_channel_are_measured(photographs: Photographs) -> None:
    images, _ = photographs
    vae = build_vae(CONFIG, 32).eval()
    with torch.no_grad():
        posterior = vae.encode(to_unit(images)).latent_dist
    axes = (0, 2, 3)  # the spread of draws, by the law of total variance
    variance = posterior.mean.var(axes, correction=0) + posterior.var.mean(axes)
    mean, std = measure_latents(vae, images, batch_size=7)
    tolerance = 4 * float(variance.max().sqrt()) / math.sqrt(len(images) * 16 * 16)
    assert mean == pytest.approx(posterior.mean.mean(axes).tolist(), abs=tolerance)
    assert std == pytest.approx(variance.sqrt().tolist(), rel=0.05)
    assert len({round(value, 2) for value in std}) > 1


def test_reconstruction_decodes_the_mean_of_the_posterior(photographs: Photographs) -> None:
    images, _ = photographs
    vae = build_vae(CONFIG, 32).eval()
    with torch.no_grad():
        x_hat = vae.decode(vae.encode(to_unit(images)).latent_dist.mean).sample
    expected = ((x_hat.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    decoded = reconstruct(vae, images, batch_size=7)
    assert (decoded.shape, decoded.dtype) == (images.shape, np.uint8)
    assert np.abs(decoded - expected).max() <= 1  # batches of other sizes round alike but for a tie
    assert (decoded == expected).mean() > 0.999


def test_psnr_counts_from_a_peak_of_255() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr_db(black, np.full_like(black, 255)) == pytest.approx(0)
    assert psnr_db(np.full_like(black, 51), black) == pytest.approx(20 * math.log10(5))


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
    config = json.loads((out / "config.json").read_text())
    assert config["scaling_factor"] == 1
    assert config["latents_mean"] == report["latents_mean"]
    assert config["latents_std"] == report["latents_std"]
    with torch.no_grad():
        posterior = load_vae(out).encode(to_unit(photographs[0])).latent_dist
    mean, std = (torch.tensor(report[f"latents_{name}"]).view(4, 1, 1) for name in ("mean", "std"))
    draws = (torch.cat([posterior.sample() for _ in range(8)]) - mean) / std
    for channel in draws.unbind(dim=1):
        assert float(channel.mean()) == pytest.approx(0.0, abs=0.03)
        assert float(channel.std()) == pytest.approx(1.0, abs=0.03)


def vae_command(idx_folder: Path, out: Path, *flags: str) -> list[str]:
    return [
        "--data", str(idx_folder), "--out", str(out), "--widths", "8", "8", "--no-bf16",
        "--batch-size", "8", "--total-nimg", "8", "--lr", "0", *flags,
    ]  # fmt: skip


def test_command_starts_from_the_weights_of_another_vae(idx_folder: Path, tmp_path: Path) -> None:
    """With a learning rate of zero the weights that come out are those that went in."""
    torch.manual_seed(5)
    other = build_vae(CONFIG, 32)
    save_vae(other, tmp_path / "other")
    assert main(vae_command(idx_folder, tmp_path / "new", "--from", str(tmp_path / "other"))) == 0
    assert_same_weights(load_vae(tmp_path / "new"), other)
    assert main(vae_command(idx_folder, tmp_path / "drawn")) == 0
    drawn = load_vae(tmp_path / "drawn").state_dict()["encoder.conv_in.weight"]
    assert not torch.equal(drawn, other.state_dict()["encoder.conv_in.weight"])


def test_run_from_another_vae_is_another_run(
    idx_folder: Path, photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VaeTraining(
        widths=(8, 8), batch_size=8, total_nimg=8, lr=0.0, bf16=False, initial="another"
    )
    train(config, photographs[0], tmp_path / "new.run", state_seconds=-1)
    save_vae(build_vae(CONFIG, 32), tmp_path / "other")
    assert main(vae_command(idx_folder, tmp_path / "new", "--from", str(tmp_path / "other"))) == 1
    assert "initial: 'another' -> " in capsys.readouterr().err


def test_vae_of_another_shape_is_no_start(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vae(build_vae(replace(CONFIG, widths=(8, 16)), 32), tmp_path / "other")
    assert main(vae_command(idx_folder, tmp_path / "new", "--from", str(tmp_path / "other"))) == 1
    error = capsys.readouterr().err
    assert "has another shape" in error
    assert "hint: give its --widths and --latent-channels" in error
    assert not (tmp_path / "new").exists()


def test_command_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "small.vae")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: Fashion-MNIST is not here")
    assert not any(tmp_path.iterdir())
