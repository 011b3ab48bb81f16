"""Runs that start from another run's weights: what is taken, what is new, and that they resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.model.checkpoint import load_checkpoint, read_safetensors
from training.config import TrainConfig
from training.data import Latents
from training.loop import Run
from training.prepare import prepare
from training.sources import ArraySource

ConfigFactory = Callable[..., TrainConfig]
StartRun = Callable[..., Run]


@pytest.fixture(scope="module")
def source(
    make_config: ConfigFactory,
    latents: Latents,
    vae_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A trained checkpoint of ten classes with its discriminator beside it."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    Run(make_config(seed=9), latents, vae_folder, folder).train(snapshot_nimg=16, log_nimg=8)
    return folder / "tiny.safetensors"


@pytest.fixture(scope="module")
def other_vae(make_vae_folder: Callable[[int], Path]) -> Path:
    return make_vae_folder(2)


@pytest.fixture(scope="module")
def other_latents(
    other_vae: Path,
    photographs: tuple[np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Latents:
    """Other data: three classes, encoded by another VAE."""
    out = tmp_path_factory.mktemp("data") / "other"
    drawn = ArraySource(photographs[0], photographs[1] % 3, ("a", "b", "c"), {"dataset": "drawn"})
    prepare(other_vae, drawn, out)
    return Latents(out)


@pytest.fixture
def start(
    make_config: ConfigFactory, other_latents: Latents, other_vae: Path, tmp_path: Path
) -> StartRun:
    """Make a run on the other data."""

    def make(initial: Path | None, folder: str = "run", **changes: object) -> Run:
        config = make_config().fitted(3, 8, 8)
        config = replace(config, **changes)
        return Run(config, other_latents, other_vae, tmp_path / folder, initial=initial)

    return make


CLASS_ROWS = {"mapping.class_embedding", "w_avg", "label_embedding.embedding"}


def test_weights_are_taken_and_rows_of_classes_are_new(
    start: StartRun, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, drawn = start(source), start(None, "drawn")
    generator = load_checkpoint(source).generator.state_dict()
    _, discriminator = read_safetensors(source.with_name("tiny.discriminator.safetensors"))
    for module, fresh, tensors in (
        (run.generator, drawn.generator, generator),
        (run.ema, drawn.ema, generator),
        (run.discriminator, drawn.discriminator, discriminator),
    ):
        for key, tensor in module.state_dict().items():
            expected = fresh.state_dict()[key] if key in CLASS_ROWS else tensors[key]
            assert torch.equal(tensor, expected), key
    assert run.nimg == 0
    assert not run.generator_optimizer.state
    error = capsys.readouterr().err
    assert f"generator from {source}; new for other classes: mapping.class_embedding,w_avg" in error
    assert "discriminator from beside it; new for other classes: label_embedding" in error


def test_same_classes_keep_everything(
    make_config: ConfigFactory, latents: Latents, vae_folder: Path, source: Path, tmp_path: Path
) -> None:
    run = Run(make_config(), latents, vae_folder, tmp_path / "run", initial=source)
    for key, tensor in load_checkpoint(source).generator.state_dict().items():
        assert torch.equal(run.generator.state_dict()[key], tensor), key


def test_discriminator_that_is_not_there_is_new_and_said_so(
    start: StartRun, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(source, alone)
    run, drawn = start(alone), start(None, "drawn")
    for key, tensor in run.discriminator.state_dict().items():
        assert torch.equal(tensor, drawn.discriminator.state_dict()[key]), key
    assert f"no discriminator beside {alone}: a new one" in capsys.readouterr().err


def test_interrupted_run_goes_on_from_its_state(start: StartRun, source: Path) -> None:
    whole = start(source, "whole", total_nimg=32)
    whole.train(snapshot_nimg=100, log_nimg=8)
    start(source, "cut", total_nimg=16).train(snapshot_nimg=100, log_nimg=8)
    resumed = start(source, "cut", total_nimg=32)
    assert resumed.nimg == 16
    resumed.train(snapshot_nimg=100, log_nimg=8)
    for key, tensor in whole.ema.state_dict().items():
        assert torch.equal(resumed.ema.state_dict()[key], tensor), key
    training = load_checkpoint(resumed.folder / "tiny.safetensors").training
    assert training["initial"] == whole.initial.identity  # type: ignore[union-attr]
    assert (training["initial"]["name"], training["initial"]["nimg"]) == ("tiny", 16)
    assert len(training["initial"]["sha256"]) == 64


def test_state_belongs_to_the_start_it_had(start: StartRun, source: Path) -> None:
    start(source).train(snapshot_nimg=100, log_nimg=8)
    with pytest.raises(CheckpointError, match="initial: "):
        start(None)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("generator", {"width": 32}, "generator .* width 16 instead of 32"),
        ("generator", {"modulation": "no_shift"}, "modulation shift instead of no_shift"),
        ("discriminator", {"depth": 1}, "discriminator .* depth 2 instead of 1"),
    ],
)
def test_other_architecture_is_refused(
    start: StartRun, source: Path, tmp_path: Path, part: str, changes: dict[str, object], said: str
) -> None:
    config = start(None, "drawn").config
    with pytest.raises(CheckpointError, match=said):
        start(source, **{part: replace(getattr(config, part), **changes)})
    assert not (tmp_path / "run").exists()


def test_form_of_the_discriminators_attention_may_change(start: StartRun, source: Path) -> None:
    config = start(None, "drawn").config
    run = start(source, discriminator=replace(config.discriminator, attention="masked"))
    assert run.discriminator.config.attention == "masked"


def test_run_does_not_write_over_its_start(start: StartRun, tmp_path: Path, source: Path) -> None:
    shutil.copytree(source.parent, tmp_path / "again")
    (tmp_path / "again" / "state.pt").unlink()
    with pytest.raises(InvalidInput, match="would write over"):
        start(tmp_path / "again" / "tiny.safetensors", "again")
