"""Runs that start from another run's weights: what is taken, what is new, and that they resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
)
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig
from training.config import TrainConfig
from training.data import Latents
from training.discriminator import Discriminator, DiscriminatorConfig
from training.initial import Initial, _rearranged
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


def test_weights_are_taken_and_rows_of_unknown_classes_are_new(
    start: StartRun, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(source)
    generator = load_checkpoint(source).generator.state_dict()
    _, discriminator = read_safetensors(source.with_name("tiny.discriminator.safetensors"))
    for module, tensors in (
        (run.generator, generator),
        (run.ema, generator),
        (run.discriminator, discriminator),
    ):
        for key, tensor in module.state_dict().items():
            if key in CLASS_ROWS:
                assert len(tensor) == 3
                assert not any(torch.equal(new, old) for new in tensor for old in tensors[key])
            else:
                assert torch.equal(tensor, tensors[key]), key
    assert run.nimg == 0
    assert not run.generator_optimizer.state
    error = capsys.readouterr().err
    assert f"generator from {source}\n" in error
    assert "0 classes are known by their names, 3 are new: a, b, c" in error
    assert "discriminator from beside it" in error


# --- classes are added ---------------------------------------------------------------------------

KNOWN = ("bag", "new", "dress", "other new", "sandal")  # not in the order of Fashion-MNIST


@pytest.fixture(scope="module")
def extended(
    make_config: ConfigFactory,
    photographs: tuple[np.ndarray, np.ndarray],
    vae_folder: Path,
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run that begins at the trained model, on three of its classes and two new ones, same VAE."""
    out = tmp_path_factory.mktemp("data") / "extended"
    drawn = ArraySource(photographs[0], photographs[1] % 5, KNOWN, {"dataset": "drawn"})
    prepare(vae_folder, drawn, out)
    config = make_config().fitted(5, 8, 8)
    return Run(config, Latents(out), vae_folder, out.with_name("run"), initial=source)


def old_rows(source: Path) -> list[int | None]:
    names = load_checkpoint(source).class_names
    return [names.index(name) if name in names else None for name in KNOWN]


@pytest.mark.parametrize("psi", [0.0, 0.6, 1.0])
def test_known_classes_look_as_they_did(extended: Run, source: Path, psi: float) -> None:
    """Every stage of every known class, at its new index; new classes are none of them."""
    before = load_checkpoint(source).generator
    z = torch.randn(4, before.config.z_dim, generator=torch.Generator().manual_seed(1))
    truncation = torch.full((4,), psi)
    old = old_rows(source)
    assert [row is None for row in old] == [False, True, False, True, False]
    for row, was in enumerate(old):
        now = extended.ema(z, torch.full((4,), row), truncation)
        if was is not None:
            expected = before(z, torch.full((4,), was), truncation)
            torch.testing.assert_close(now, expected, rtol=0, atol=0)
        else:
            others = [before(z, torch.full((4,), k), truncation) for k in range(10)]
            assert all((now - other).abs().mean() > 1e-5 for other in others)


def test_discriminator_judges_known_classes_as_it_did(extended: Run, source: Path) -> None:
    description, tensors = read_safetensors(source.with_name("tiny.discriminator.safetensors"))
    config = DiscriminatorConfig.from_dict(description["discriminator"])
    before = Discriminator(config).eval()
    before.load_state_dict(tensors)
    full = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    images = [functional.interpolate(full, size=scale, mode="area") for scale in config.scales]
    now = extended.discriminator.eval()
    for row, was in enumerate(old_rows(source)):
        if was is not None:
            got = now(images, torch.full((2,), row))
            expected = before(images, torch.full((2,), was))
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_new_rows_are_of_the_kind_of_the_old_ones() -> None:
    """Same mean and spread in every direction, all different, and the same whenever they are drawn."""
    old = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 5
    rows = [*range(50), *(None for _ in range(2000))]
    made = _rearranged(old, rows, "x")
    assert torch.equal(made[:50], old)
    torch.testing.assert_close(made[50:].mean(0), old.mean(0), rtol=0.1, atol=0.4)
    torch.testing.assert_close(made[50:].std(0), old.std(0), rtol=0.1, atol=0)
    assert torch.equal(made, _rearranged(old, rows, "x"))
    assert len(made.unique(dim=0)) == len(made)
    alone = _rearranged(old[:1], [0, None, None], "x")
    assert not torch.equal(alone[1], alone[2])


def test_w_avg_of_a_new_class_is_the_mean_of_its_w(extended: Run) -> None:
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        w = extended.generator.mapping(z, torch.full((4000,), 1))
    spread = w.std(0) / 1024**0.5
    assert ((extended.generator.w_avg[1] - w.mean(0)).abs() < 6 * spread).all()
    assert extended.generator.w_avg[1].abs().max() > 0


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


def test_imported_generator_of_another_family_is_refused(tmp_path: Path) -> None:
    generator = OneStep(
        OneStepConfig(16, 2, 32, patch=2, size=4, channels=3, num_classes=2, order=((0, 0),))
    )
    checkpoint = Checkpoint("other", generator, None, ("a", "b"))
    save_checkpoint(tmp_path / "other.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="no CAT generator"):
        Initial.load(tmp_path / "other.safetensors")


def test_form_of_the_discriminators_attention_may_change(start: StartRun, source: Path) -> None:
    config = start(None, "drawn").config
    run = start(source, discriminator=replace(config.discriminator, attention="masked"))
    assert run.discriminator.config.attention == "masked"


def test_run_does_not_write_over_its_start(start: StartRun, tmp_path: Path, source: Path) -> None:
    shutil.copytree(source.parent, tmp_path / "again")
    (tmp_path / "again" / "state.pt").unlink()
    with pytest.raises(InvalidInput, match="would write over"):
        start(tmp_path / "again" / "tiny.safetensors", "again")
