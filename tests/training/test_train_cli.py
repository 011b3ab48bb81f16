"""The commands of training: presets, flags, refusals, and one whole run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cat_serve.errors import InvalidInput
from cat_serve.model.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.data import Latents
from training.options import OPTIONS, Option
from training.presets import PRESETS, train_preset
from training.train import build_parser, main, resolve_config

ROOT = Path(__file__).parents[2]
ConfigFactory = Callable[..., TrainConfig]


@pytest.fixture
def arguments(prepared: Path, vae_folder: Path, tmp_path: Path) -> list[str]:
    """A run of two steps; what is given after these flags wins."""
    return [
        "--preset", "fashion-32", "--data", str(prepared), "--vae", str(vae_folder),
        "--run", str(tmp_path / "run"), "--width", "16", "--batch-size", "8", "--total-nimg", "16",
    ]  # fmt: skip


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_complete_and_survives_json(name: str) -> None:
    config = train_preset(name)
    assert config.name == name == name.lower()
    assert "/" not in name
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("size", "epochs"), [("s", 40), ("m", 40), ("xl", 40), ("h", 60)])
def test_imagenet_presets_are_the_papers(size: str, epochs: int) -> None:
    config = train_preset(f"cat-{size}2-256")
    assert config.total_nimg == epochs * 1_281_167
    assert (config.batch_size, config.gamma, config.consistency.weight) == (512, 1.0, 0.1)
    consistency = config.consistency
    assert (consistency.detach_anchor, consistency.at_scale) == (False, False)
    assert (consistency.omegas, config.resize) == ("inverse", "area")
    assert (config.discriminator.depth, config.discriminator.width) == (12, 768)  # size B


def test_learning_rate_follows_width_and_batch(make_config: ConfigFactory) -> None:
    huge = train_preset("cat-h2-256")
    assert huge.lr(huge.generator.width) == pytest.approx(1.2e-4)
    assert huge.lr(huge.discriminator.width) == pytest.approx(2e-4)
    smaller = make_config(batch_size=128)
    assert smaller.lr(768) == pytest.approx(2e-4 / 2)
    assert smaller.lr(128) == pytest.approx(2e-4 * 6 / 2)


@pytest.mark.parametrize(
    ("changes", "named"), [({"batch_size": 0}, "batch_size 0"), ({"total_nimg": -1}, "-1")]
)
def test_run_without_images_is_refused(
    make_config: ConfigFactory, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        make_config(**changes)


def test_networks_that_disagree_are_refused(make_config: ConfigFactory) -> None:
    with pytest.raises(InvalidInput, match="latent_size: 8 and 32"):
        make_config(discriminator=train_preset("cat-m2-256").discriminator)


def resolved(arguments: list[str], latents: Latents) -> TrainConfig:
    return resolve_config(build_parser().parse_args(arguments), latents.index)


def test_flags_replace_settings_of_the_preset(arguments: list[str], latents: Latents) -> None:
    flags = ["--base-lr", "1e-3", "--gamma", "0.5", "--lambda", "0", "--seed", "7"]
    config = resolved(arguments + flags, latents)
    preset = train_preset("fashion-32")
    assert (config.generator.width, config.discriminator.width) == (16, 16)
    assert (config.batch_size, config.total_nimg) == (8, 16)
    assert (config.base_lr, config.gamma, config.seed) == (1e-3, 0.5, 7)
    assert (config.consistency.weight, config.gamma_final) == (0, None)
    assert config.generator.depth == preset.generator.depth


def test_without_flags_the_preset_holds(latents: Latents) -> None:
    flags = ["--preset", "fashion-32", "--data", "d", "--vae", "v", "--run", "r"]
    assert resolved(flags, latents) == train_preset("fashion-32")


GIVEN = {  # every flag, with a value that no preset has
    "--name": ("mine", "mine"), "--total-nimg": ("24", 24), "--batch-size": ("4", 4),
    "--base-lr": ("0.5", 0.5), "--lr-decay-nimg": ("8", 8), "--gamma": ("0.7", 0.7),
    "--gamma-final": ("0.2", 0.2), "--gamma-anneal-nimg": ("9", 9),
    "--penalty-sigma": ("0.1", 0.1), "--penalty-every": ("2", 2), "--lambda": ("0.3", 0.3),
    "--label-weight": ("0.6", 0.6),
    "--detach-anchor": (None, True), "--at-scale": (None, True), "--omegas": ("uniform", "uniform"),
    "--resize": ("bilinear", "bilinear"), "--attention": ("aggregated", "aggregated"),
    "--augment": ("cutout", ("cutout",)), "--flip-probability": ("0.1", 0.1),
    "--translation-fill": ("zero", "zero"), "--teacher": ("efficientnet-lite0", "efficientnet-lite0"),
    "--teacher-weight": ("0.4", 0.4), "--modulation": ("no_shift", "no_shift"), "--seed": ("3", 3),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_every_flag_reaches_its_setting(
    arguments: list[str], latents: Latents, option: Option
) -> None:
    text, value = GIVEN[option.flag]
    config = resolved([*arguments, option.flag, *([text] if text else [])], latents)
    part, _, name = option.setting.rpartition(".")

    def setting(of: TrainConfig) -> object:
        return getattr(getattr(of, part) if part else of, name)

    assert setting(config) == value != setting(train_preset("fashion-32"))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_augmentations_can_all_be_off(arguments: list[str], latents: Latents) -> None:
    assert resolved([*arguments, "--augment"], latents).augmentations == ()


# --- the command ---------------------------------------------------------------------------------


def test_command_trains_and_goes_on(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["nimg"] == 16
    assert Path(report["checkpoint"]) == tmp_path / "run" / "fashion-32.safetensors"
    assert main([*arguments, "--total-nimg", "24"]) == 0
    assert json.loads(capsys.readouterr().out)["nimg"] == 24
    assert load_checkpoint(Path(report["checkpoint"])).training["nimg"] == 24
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["nimg"] for line in lines] == [16, 24]
    assert all(math.isfinite(value) for value in json.loads(lines[0]).values())


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--preset", "cat-xxl"], 2, "No training preset 'cat-xxl'"),
        (
            ["--preset", "cat-s2-256", "--width", "384", "--teacher", "none"],
            1,
            "cat-s2-256 wants (1000, 4, 32)",
        ),
        (["--data", "nowhere"], 1, "nowhere holds no prepared data"),
        (["--vae", "nowhere"], 1, "There is no VAE nowhere"),
        (["--vae", "nowhere.safetensors"], 1, "There is no checkpoint nowhere.safetensors"),
        (["--width", "30"], 2, "width 30"),
        (["--batch-size", "-8"], 2, "batch_size -8"),
        (["--log-nimg", "0"], 2, "at least 1"),
        (["--name", "a/b"], 2, "'a/b' is no name for a model"),
        (["--from", "nowhere.safetensors"], 1, "There is no checkpoint nowhere.safetensors"),
        (["--teacher", "professor"], 2, "No teacher 'professor'"),
        (["--teacher", "efficientnet-lite0"], 1, "cannot be opened again"),
    ],
)
def test_command_refuses_in_one_line(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    named: str,
) -> None:
    assert main(arguments + flags) == code
    error = capsys.readouterr().err
    assert named in error
    first, *hints = error.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  hint: ") for line in hints)
    assert not list(tmp_path.glob("run/*"))


def test_latents_of_another_vae_are_refused(
    arguments: list[str],
    make_vae_folder: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments, "--vae", str(make_vae_folder(1))]) == 1
    assert "were encoded by another VAE" in capsys.readouterr().err


def test_process_ends_with_two_and_no_traceback(tmp_path: Path) -> None:
    flags = ["--preset", "none", "--data", ".", "--vae", ".", "--run", str(tmp_path / "run")]
    command = [sys.executable, "-m", "training.train", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: No training preset 'none'.\n  hint: presets: fashion-32"
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["train", "train_vae", "prepare"])
def test_help_needs_no_torch(module: str) -> None:
    code = (
        f"import sys; from training.{module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert f"python -m training.{module}" in result.stdout
