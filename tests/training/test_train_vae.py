"""The VAE's training: it resumes, measures its own scale, and says when it cannot go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve.errors import CheckpointError, DataError, TrainingDiverged
from cat_serve.model.vae import latent_affine, load_vae
from training.decoded import hold_out
from training.images import decode
from training.sources import open_folder
from training.train_vae import (
    VaeTraining,
    build_parser,
    build_vae,
    learning_rate,
    load_photographs,
    main,
    train,
)
from training.vae import measure_latents, psnr_db, reconstruct, save_vae, to_unit

Photographs = tuple[np.ndarray, np.ndarray]
CONFIG = VaeTraining(widths=(8, 8), batch_size=8, total_nimg=40, warmup_nimg=16, bf16=False)


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
    config = replace(CONFIG, total_nimg=8)
    train(config, photographs[0], tmp_path, state_seconds=-1)
    with pytest.raises(CheckpointError, match="kl_weight"):
        train(replace(config, kl_weight=0.1), photographs[0], tmp_path)


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


@pytest.mark.parametrize("has", [True, False])
def test_processor_without_bfloat16_is_pointed_at(
    idx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has: bool,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": has, "avx2": True})
    flags = ["--data", str(idx_folder), "--widths", "8", "8", "--batch-size", "4", "--total-nimg", "4"]  # fmt: skip
    assert main([*flags, "--out", str(tmp_path / "vae")]) == 0
    assert ("give --no-bf16" in capsys.readouterr().err) is not has


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


# --- image folders -------------------------------------------------------------------------------


@pytest.fixture
def folder_command(write_images: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Train for one step on 30 images of two classes, one of them broken."""
    root = write_images(*(f"{label}/{number:02d}.png" for label in "ab" for number in range(15)))
    (root / "a" / "03.png").write_bytes(b"")
    return [
        "--images", str(root), "--size", "16", "--out", str(tmp_path / "my.vae"), "--widths", "8",
        "8", "--batch-size", "8", "--total-nimg", "8", "--no-bf16", "--workers", "0",
        "--max-broken", "0.1",
    ]  # fmt: skip


def test_folder_trains_a_vae(
    folder_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(folder_command) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert "1 of 30 photographs are broken" in err
    assert math.isfinite(report["test_psnr_db"])
    vae = load_vae(tmp_path / "my.vae")
    assert vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean.shape == (1, 4, 8, 8)
    assert list(latent_affine(vae)[0]) == pytest.approx(report["latents_mean"])


def test_photographs_of_a_folder_are_decoded_once_and_some_are_held_out(
    folder_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = build_parser().parse_args(folder_command)
    run = tmp_path / "run"

    def load() -> tuple[np.ndarray, np.ndarray]:
        return load_photographs(arguments, open_folder(arguments), run, CONFIG)

    images, test_images = load()
    assert (images.shape, test_images.shape) == ((28, 16, 16, 3), (1, 16, 16, 3))
    both = np.concatenate([images, test_images])
    expected = {
        decode(path.read_bytes(), 16).tobytes()
        for path in arguments.images.rglob("*.png") if path.stat().st_size
    }  # fmt: skip
    assert {photograph.tobytes() for photograph in both} == expected
    stamp = (run / "photographs.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(load()[0], images)
    assert (run / "photographs.npy").stat().st_mtime_ns == stamp
    (arguments.images / "b" / "00.png").unlink()
    assert len(load()[0]) == 27


def test_run_does_not_go_on_with_other_photographs(
    folder_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = build_parser().parse_args(folder_command)
    config = VaeTraining(widths=(8, 8), batch_size=8, total_nimg=8, bf16=False, data="others")
    train(config, np.zeros((8, 16, 16, 3), np.uint8), tmp_path / "my.vae.run", state_seconds=-1)
    assert main(folder_command) == 1
    listing = open_folder(arguments).description["listing"]  # type: ignore[union-attr]
    assert f"data: 'others' -> '{listing} at 16 px'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--size", "15"], 2, "--size 15 does not divide by 2"),
        (["--max-broken", "0.01"], 1, "1 of 30 photographs are broken, more than 1.00%"),
        (["--images", "nowhere"], 1, "There is no folder nowhere"),
    ],
)
def test_folder_that_cannot_be_used_is_refused(
    folder_command: list[str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    said: str,
) -> None:
    assert main([*folder_command, *flags]) == code
    assert said in capsys.readouterr().err


def test_one_photograph_is_too_few() -> None:
    with pytest.raises(DataError, match="1 photographs are too few"):
        hold_out(np.zeros((1, 8, 8, 3), np.uint8))


def test_command_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "small.vae")]
    assert main(arguments) == 2
    assert "error: Fashion-MNIST is not here" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
