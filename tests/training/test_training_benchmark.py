"""The benchmark of a step compares like with like: both versions have the same losses and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.straightforward import average
from benchmarks.training_step import Trainer, main
from training.augment import PARTS
from training.config import TrainConfig
from training.ema import update_ema
from training.objective import Objective, frozen
from training.streams import stream_at

ConfigFactory = Callable[..., TrainConfig]


@pytest.mark.parametrize("attention", ["scale_wise", "masked"])
@pytest.mark.parametrize("fill", ["zero", "edge"])
def test_both_versions_have_the_same_losses_in_float64(
    make_config: ConfigFactory, attention: str, fill: str
) -> None:
    config = make_config(label_weight=0.3, translation_fill=fill, augmentations=PARTS)
    config = replace(config, discriminator=replace(config.discriminator, attention=attention))
    trainer = Trainer(config)
    trainer.generator.double()
    trainer.discriminator.double()
    batch = (trainer.x.double(), trainer.y)
    taken = []
    for version in trainer.versions():
        objective: Objective = version.objective
        trainer.generator.w_avg.zero_()
        trainer.generator.zero_grad()
        trainer.discriminator.zero_grad()
        losses = objective.discriminator_step(*batch, stream_at(0, "d", 0))
        losses["d_total"].backward()
        with frozen(trainer.discriminator):
            of_generator = objective.generator_step(*batch, stream_at(0, "g", 0))
            of_generator["g_total"].backward()
        gradients = [
            parameter.grad.clone()
            for network in (trainer.generator, trainer.discriminator)
            for parameter in network.parameters()
        ]
        taken.append((losses | of_generator, gradients, trainer.generator.w_avg.clone()))
    (losses, gradients, w_avg), (slow_losses, slow_gradients, slow_w_avg) = taken
    assert losses.keys() == slow_losses.keys()
    for key, value in losses.items():
        assert value.item() == pytest.approx(slow_losses[key].item(), rel=1e-9), key
    torch.testing.assert_close(w_avg, slow_w_avg)
    for mine, slow in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-7, atol=1e-12)


def test_both_averages_are_equal(make_config: ConfigFactory) -> None:
    trainer = Trainer(make_config())
    other = Trainer(make_config())
    for made, move in ((trainer, update_ema), (other, average)):
        with torch.no_grad():
            for parameter in made.generator.parameters():
                parameter.add_(1.0)
        move(made.ema, made.generator, 0.9)
    for mine, theirs in zip(trainer.ema.parameters(), other.ema.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_benchmark_prints_a_table_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "fashion-32", "--batch-size", "8", "--rounds", "1"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert report["speedup"] > 0
    assert 0 < report["share_of_matrix_peak"] < 1
    assert 0 < report["profile"]["matrix_products"] < 1
    for name in ("cat-serve", "straightforward"):
        assert f"| {name} |" in err
    assert "compiled" not in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_compiled_blocks_take_their_turn(
    make_config: ConfigFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the same weights: their losses are those of the blocks as they are."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    config = make_config()
    monkeypatch.setattr("benchmarks.training_step.configuration", lambda _: config)
    eager, compiled = Trainer(config), Trainer(config).compiled()
    mine, theirs = (each.step(each.versions()[0], 0) for each in (eager, compiled))
    assert theirs == pytest.approx(mine, rel=2e-3, abs=1e-5)
    assert main(["--rounds", "1", "--compile"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert report["speedup_compiled"] > 0
    assert report["first_step_cpu_seconds"] > 0
    assert "| cat-serve, compiled |" in err
