"""How a run computes changes nothing of what it is: checkpointing, bf16, compiled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cat_serve.errors import InvalidInput
from cat_serve.model.checkpoint import load_checkpoint
from cat_serve.model.generator import Generator
from training.config import TrainConfig
from training.data import Latents
from training.discriminator import Discriminator
from training.ema import update_ema
from training.engine import Engine, Runtime
from training.loop import Run
from training.objective import Objective, frozen

ConfigFactory = Callable[..., TrainConfig]
StartRun = Callable[..., Run]


@pytest.fixture
def start(
    make_config: ConfigFactory, latents: Latents, vae_folder: Path, tmp_path: Path
) -> StartRun:
    """Make a run of two steps that computes as the keywords say."""

    def make(folder: str, total_nimg: int = 16, **how: object) -> Run:
        config = make_config(total_nimg=total_nimg, label_weight=0.2)
        engine = Engine(Runtime(**how))  # type: ignore[arg-type]
        return Run(config, latents, vae_folder, tmp_path / folder, engine=engine)

    return make


def weights(run: Run) -> list[Tensor]:
    networks = (run.generator, run.critic, run.ema)
    return [tensor for network in networks for tensor in network.state_dict().values()]


@contextmanager
def counting(module: nn.Module) -> Iterator[list[torch.dtype]]:
    """Note the dtype of every output of a module."""
    seen: list[torch.dtype] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    try:
        yield seen
    finally:
        hook.remove()


# --- gradient checkpointing ----------------------------------------------------------------------


def test_checkpointing_changes_no_weight(start: StartRun) -> None:
    kept, again = start("kept"), start("again", checkpointing=True)
    for _ in range(2):
        assert kept.step() == again.step()
    for mine, theirs in zip(weights(again), weights(kept), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("network", "passes"),
    [
        ("generator", (2, 3)),  # without a gradient in D's step; with one in G's
        (
            "discriminator",
            (3, 5),
        ),  # D's step; real and fake images in G's, real ones without gradient
    ],
)
def test_checkpointing_runs_the_blocks_again(
    start: StartRun, network: str, passes: tuple[int, int]
) -> None:
    for checkpointing, expected in zip((False, True), passes, strict=True):
        run = start(f"run-{checkpointing}", checkpointing=checkpointing)
        with counting(getattr(run, network).blocks[1].ffn) as seen:
            run.step()
        assert len(seen) == expected


# --- bf16 ----------------------------------------------------------------------------------------


def test_bf16_runs_the_trunks_and_leaves_the_rest_in_float32(start: StartRun) -> None:
    run = start("bf16", precision="bf16")
    g, d = run.generator, run.discriminator
    with (
        counting(g.blocks[0].ffn.w3) as g_trunk,
        counting(g.mapping) as mapping,
        counting(d.head) as head,
        counting(d.blocks[0].ffn.w3) as d_trunk,
    ):
        run.step()
    assert set(g_trunk) == {torch.bfloat16}
    assert set(mapping) == set(head) == {torch.float32}
    # D's step and, in float32, what the penalties look at; then real and fake images for G's
    assert d_trunk == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    assert {tensor.dtype for tensor in weights(run)} == {torch.float32}
    assert all(parameter.grad.dtype == torch.float32 for parameter in g.parameters())


def test_bf16_losses_are_those_of_float32_but_for_rounding(start: StartRun) -> None:
    runs = start("float32"), start("bf16", precision="bf16")
    for run in runs:
        with torch.no_grad():
            run.discriminator.head.weight.mul_(
                10
            )  # logits, and so their rounding, of a size that shows
    exact, rounded = (run.step() for run in runs)
    for key, value in exact.items():
        assert rounded[key] == pytest.approx(value, rel=0.05, abs=0.02), key
    assert rounded["g_adv"] != exact["g_adv"]
    assert rounded["r1"] == pytest.approx(
        exact["r1"], rel=1e-4
    )  # of real images: not rounded at all


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_compiled_blocks_give_the_same_losses(
    start: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # nobody else's files
    eager, compiled = start("eager"), start("compiled", compile=True)
    expected = eager.step()
    for key, value in compiled.step().items():
        assert value == pytest.approx(expected[key], rel=2e-3, abs=1e-5), key
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert eager.generator.state_dict().keys() == compiled.generator.state_dict().keys()


# --- what a run is -------------------------------------------------------------------------------


def test_run_goes_on_when_it_computes_otherwise(start: StartRun) -> None:
    start("run", precision="bf16").train(snapshot_nimg=16, log_nimg=8)
    run = start("run", total_nimg=32, checkpointing=True)
    assert run.nimg == 16
    run.train(snapshot_nimg=16, log_nimg=8)
    runtime = load_checkpoint(run.folder / "tiny.safetensors").training["runtime"]
    assert {key: runtime[key] for key in ("precision", "checkpointing", "compile")} == {
        "precision": "float32", "checkpointing": True, "compile": False,
    }  # fmt: skip
    assert (runtime["device"], runtime["processes"]) == (run.engine.device.type, 1)


@pytest.mark.parametrize(
    ("how", "named"),
    [({"precision": "fp8"}, "'fp8'"), ({"timeout_minutes": 0}, "must be positive")],
)
def test_what_is_no_way_to_compute_is_refused(how: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Runtime(**how)  # type: ignore[arg-type]


# --- another device ------------------------------------------------------------------------------


class NoAverage(Generator):
    """Without the update of w_avg, whose shapes depend on the labels: the meta device has none."""

    def update_w_avg(self, w: Tensor, class_id: Tensor) -> None:
        pass


def test_step_keeps_to_the_device_of_the_weights(make_config: ConfigFactory) -> None:
    """Draws come from the CPU; on the meta device, as on a GPU, a tensor that stays there is refused."""
    config = make_config(label_weight=0.2)
    x, y, rng = torch.randn(8, 8, 8, 8), torch.arange(8), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        generator, ema = NoAverage(config.generator), NoAverage(config.generator)
        discriminator = Discriminator(config.discriminator)
    objective = Objective(generator, discriminator, config)
    there = (x.to("meta"), y.to("meta"))
    losses = objective.discriminator_step(*there, rng)
    losses["d_total"].backward()
    with frozen(discriminator):
        losses |= objective.generator_step(*there, rng)
        losses["g_total"].backward()
    update_ema(ema.requires_grad_(False), generator, 0.9)
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    with pytest.raises(RuntimeError, match="device"):  # so it does refuse
        objective.discriminator_step(x, y, rng)
