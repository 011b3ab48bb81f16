"""A dry run's figures: against the papers' table, against torch's counts of real steps, and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cat_serve.model.checkpoint import parameter_count
from cat_serve.model.generator import Generator
from training.config import TrainConfig
from training.discriminator import Discriminator
from training.dry_run import Sizes, activation_bytes, plan, step_macs
from training.engine import Runtime
from training.objective import Objective, frozen
from training.presets import train_preset
from training.train import main

ConfigFactory = Callable[..., TrainConfig]


def report(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert main([*flags, "--dry-run"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "millions", "gmacs", "epochs", "lr"),
    [("cat-m2-256", 260.85, 46.0, 40, 2e-4), ("cat-h2-256", 959.77, 166.7, 60, 1.2e-4)],
)
def test_papers_models_have_the_papers_figures(
    capsys: pytest.CaptureFixture[str],
    preset: str, millions: float, gmacs: float, epochs: float, lr: float,
) -> None:  # fmt: skip
    got = report(capsys, "--preset", preset, "--processes", "8")
    assert got["params"]["generator_as_published"] / 1e6 == pytest.approx(millions, abs=0.005)
    assert got["gmacs"]["generator"] == pytest.approx(gmacs, rel=0.002)
    assert (got["epochs"], got["steps_per_epoch"]) == (epochs, 2503)
    assert got["steps"] == -(-got["total_nimg"] // 512)
    assert got["lr"] == pytest.approx({"generator": lr, "discriminator": 2e-4})
    assert got["images_per_process"] == 64
    per_image = 2e9 * got["gmacs"]["step_per_image"]
    assert got["flops"] == pytest.approx(per_image * got["total_nimg"], rel=1e-6)
    trained = sum(got["params"][name] for name in ("generator", "discriminator", "projector"))
    memory = got["memory_bytes"]
    assert (memory["gradients"], memory["optimizer"]) == (4 * trained, 8 * trained)
    assert memory["weights"] == 4 * (trained + got["params"]["teacher"])
    assert memory["ema"] == 4 * got["params"]["generator"]
    assert memory["total"] == sum(memory.values()) - memory["total"]


def test_data_say_how_many_images_there_are(
    capsys: pytest.CaptureFixture[str], prepared: Path
) -> None:
    flags = (
        "--preset",
        "fashion-32",
        "--data",
        str(prepared),
        "--width",
        "16",
        "--batch-size",
        "8",
    )
    got = report(capsys, *flags, "--total-nimg", "48")
    assert (got["images"], got["steps_per_epoch"], got["steps"], got["epochs"]) == (24, 3, 6, 2)


def test_preset_for_any_data_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "folder", "--dry-run"]) == 2
    assert "--data" in capsys.readouterr().err


def test_training_needs_what_a_dry_run_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "fashion-32"]) == 2
    assert "--data, --vae, --run" in capsys.readouterr().err


# --- the figures ---------------------------------------------------------------------------------


@pytest.fixture
def config(make_config: ConfigFactory) -> TrainConfig:
    """Networks in which the linear layers cost most, as in those of the papers."""
    made = make_config()
    return replace(
        made,
        generator=replace(made.generator, width=64, heads=2),
        discriminator=replace(made.discriminator, width=64, heads=2),
    )


def counted_step(config: TrainConfig, checkpointing: bool) -> tuple[int, int, dict[str, int]]:
    """Return parameters, multiplications and the most that autograd kept, of a real step of 8 images."""
    generator, discriminator = Generator(config.generator), Discriminator(config.discriminator)
    generator.checkpointing = discriminator.checkpointing = checkpointing
    objective = Objective(generator, discriminator, config)
    x, y, rng = torch.randn(8, 8, 8, 8), torch.arange(8), torch.Generator().manual_seed(0)
    kept = {}
    with FlopCounterMode(display=False) as counter:
        for who in ("discriminator", "generator"):
            storages: dict[int, torch.UntypedStorage] = {}

            def note(
                tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage] = storages
            ) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            with frozen(discriminator if who == "generator" else torch.nn.Identity()):
                with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                    losses = getattr(objective, f"{who}_step")(x, y, rng)
                losses[f"{who[0]}_total"].backward()
            for network in (generator, discriminator):
                for parameter in network.parameters():
                    storages.pop(parameter.untyped_storage().data_ptr(), None)
            kept[who] = sum(storage.nbytes() for storage in storages.values())
    parameters = parameter_count(generator) + parameter_count(discriminator)
    return parameters, counter.get_total_flops() // 2, kept


@pytest.mark.parametrize("checkpointing", [False, True])
def test_cost_of_a_step_is_what_torch_counts(config: TrainConfig, checkpointing: bool) -> None:
    parameters, macs, _ = counted_step(config, checkpointing)
    sizes = Sizes(config)
    assert parameter_count(sizes.generator) + parameter_count(sizes.discriminator) == parameters
    estimated = 8 * step_macs(sizes, config, Runtime(checkpointing=checkpointing))
    assert estimated == pytest.approx(
        macs, rel=0.08
    )  # labels and attention's gradients are simplified


def test_activations_are_what_autograd_keeps(config: TrainConfig) -> None:
    deep = replace(
        config,
        generator=replace(config.generator, depth=6),
        discriminator=replace(config.discriminator, depth=6),
    )
    _, _, kept = counted_step(deep, checkpointing=False)
    assert activation_bytes(deep, Runtime(), 8) == pytest.approx(max(kept.values()), rel=0.15)
    _, _, kept = counted_step(deep, checkpointing=True)
    of_blocks = activation_bytes(deep, Runtime(checkpointing=True), 8)
    assert of_blocks > 0.5 * max(kept.values())
    assert of_blocks < 0.5 * activation_bytes(deep, Runtime(), 8)


def test_more_processes_share_the_activations_alone(config: TrainConfig) -> None:
    config = replace(config, batch_size=16)
    one, four = (plan(config, 24, Runtime(), processes)["memory_bytes"] for processes in (1, 4))
    assert four["activations"] == one["activations"] / 4
    assert {k: four[k] for k in ("weights", "optimizer", "ema")} == {
        k: one[k] for k in ("weights", "optimizer", "ema")
    }


def test_bf16_and_checkpointing_need_less_memory() -> None:
    preset = train_preset("fashion-32")
    usual, checkpointing = (
        activation_bytes(preset, how, 64) for how in (Runtime(), Runtime(checkpointing=True))
    )
    assert checkpointing < usual / 3
