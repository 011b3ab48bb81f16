"""The training loop: resumed equals uninterrupted, and nothing good is lost when a run goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import training.loop as loop
from cat_serve.errors import CheckpointError, DataError, InvalidInput, TrainingDiverged
from cat_serve.model.checkpoint import load_checkpoint, read_safetensors
from cat_serve.model.config import GeneratorConfig
from training.config import TrainConfig
from training.data import Latents
from training.ema import ema_decay
from training.loop import Run

ConfigFactory = Callable[..., TrainConfig]
StartRun = Callable[..., Run]
WEIGHTS = ("tiny.safetensors", "tiny.discriminator.safetensors")


@pytest.fixture
def start(
    make_config: ConfigFactory, latents: Latents, vae_folder: Path, tmp_path: Path
) -> StartRun:
    """Make a run in a folder of the test; settings that are not given are the tiny ones."""

    def make(folder: str = "run", **changes: object) -> Run:
        return Run(make_config(**changes), latents, vae_folder, tmp_path / folder)

    return make


@pytest.fixture
def train(start: StartRun) -> StartRun:
    """Make a run and train it to its end."""

    def make(folder: str = "run", **changes: object) -> Run:
        run = start(folder, **changes)
        run.train(snapshot_nimg=16, log_nimg=8)
        return run

    return make


@pytest.fixture(scope="module")
def whole(
    make_config: ConfigFactory,
    latents: Latents,
    vae_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """An uninterrupted run of six steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = Run(make_config(total_nimg=48), latents, vae_folder, folder)
    run.train(snapshot_nimg=16, log_nimg=8)
    return run


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a nested state down to its tensors and plain values."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        yield name, value


def read_state(run: Run) -> dict[str, Any]:
    """Read a state as one flat dictionary, without the wall-clock time."""
    state = dict(flatten(torch.load(run.state_path, weights_only=True)))
    del state[".seconds"]
    return state


def read_log(run: Run) -> list[dict[str, float]]:
    """Read the log without what depends on the clock."""
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    timeless = [json.loads(line) for line in lines]
    for line in timeless:
        del line["seconds"], line["images_per_second"]
    return timeless


def assert_same_state(run: Run, other: Run) -> None:
    mine, theirs = read_state(run), read_state(other)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        same = (
            torch.equal(value, theirs[key]) if isinstance(value, Tensor) else value == theirs[key]
        )
        assert same, key


def read_files(run: Run) -> dict[str, bytes]:
    return {name: (run.folder / name).read_bytes() for name in ("state.pt", *WEIGHTS)}


# --- going on ------------------------------------------------------------------------------------


def test_run_with_a_larger_total_equals_an_uninterrupted_one(train: StartRun, whole: Run) -> None:
    train("parts", total_nimg=16)
    parts = train("parts", total_nimg=48)
    assert parts.nimg == 48
    assert_same_state(parts, whole)
    assert read_log(parts) == read_log(whole)
    mine, theirs = (load_checkpoint(run.folder / WEIGHTS[0]) for run in (parts, whole))
    for key, tensor in mine.generator.state_dict().items():
        assert torch.equal(tensor, theirs.generator.state_dict()[key]), key


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_killed_run_equals_an_uninterrupted_one(
    start: StartRun, whole: Run, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    killed, step, taken = start("killed", total_nimg=48), Run.step, []

    def step_or_stop(run: Run) -> dict[str, float]:
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(run.nimg)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            killed.train(snapshot_nimg=16, log_nimg=16, state_seconds=-1)  # a state with every line
    assert killed.state_path.exists() == (steps >= 2)
    resumed = start("killed", total_nimg=48)
    assert resumed.nimg == steps // 2 * 16
    resumed.train(snapshot_nimg=16, log_nimg=16)
    assert_same_state(resumed, whole)


def test_log_holds_nothing_beyond_the_state_it_resumes_from(train: StartRun, whole: Run) -> None:
    run = train("cut", total_nimg=16)
    with (run.folder / "log.jsonl").open("a") as stream:
        stream.write(json.dumps(read_log(whole)[-1]) + "\n")  # logged, but not in the state
        stream.write('{"nimg": 32, "sec')  # killed while it wrote
    resumed = train("cut", total_nimg=48)
    assert [line["nimg"] for line in read_log(resumed)] == [8, 16, 24, 32, 40, 48]
    assert read_log(resumed) == read_log(whole)


def test_run_killed_at_its_last_checkpoint_still_writes_it(
    start: StartRun, train: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            start().train(snapshot_nimg=16, log_nimg=8, state_seconds=-1)
    run = train()
    assert load_checkpoint(run.folder / WEIGHTS[0]).training["nimg"] == 16
    assert (run.folder / "samples-000000016.png").exists()


def test_finished_run_whose_state_alone_is_there_writes_its_checkpoint(train: StartRun) -> None:
    folder = train().folder
    before = [read_safetensors(folder / name)[1] for name in WEIGHTS]
    for path in folder.iterdir():
        if path.name != "state.pt":
            path.unlink()
    train()
    for name, tensors in zip(WEIGHTS, before, strict=True):
        again = read_safetensors(folder / name)[1]
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_finished_run_is_left_as_it_is(train: StartRun) -> None:
    before = read_files(train())
    assert read_files(train()) == before


def test_state_holds_no_first_moments(train: StartRun) -> None:
    run = train()
    state = torch.load(run.state_path, weights_only=True)
    assert not [key for key in read_state(run) if "exp_avg" in key]
    for name in ("generator", "discriminator"):
        parameters = list(getattr(run, name).parameters())
        moments = state[f"{name}_optimizer"]
        assert [len(moment) for moment in moments] == [2] * len(parameters)  # step, exp_avg_sq
        for (step, exp_avg_sq), parameter in zip(moments, parameters, strict=True):
            assert float(step) == 2
            assert exp_avg_sq.shape == parameter.shape
            assert (exp_avg_sq >= 0).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gamma": 0.2}, "gamma: 0.1 -> 0.2"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"batch_size": 4}, "batch_size: 8 -> 4"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    train: StartRun, changes: dict[str, object], named: str
) -> None:
    before = read_files(train())
    with pytest.raises(CheckpointError, match=named):
        train(total_nimg=48, **changes)
    assert read_files(train()) == before


def test_state_from_before_a_setting_existed_goes_on(train: StartRun, whole: Run) -> None:
    run = train("older", total_nimg=16)
    state = torch.load(run.state_path, weights_only=True)
    for key in ("augmentations", "penalty_sigma", "penalty_every", "initial"):
        del state["config"][key]
    torch.save(state, run.state_path)
    assert_same_state(train("older", total_nimg=48), whole)


def test_state_of_a_newer_version_is_refused(train: StartRun) -> None:
    run = train()
    state = torch.load(run.state_path, weights_only=True)
    state["config"]["spectral_norm"] = True
    torch.save(state, run.state_path)
    with pytest.raises(CheckpointError, match=r"another version of this project: .*spectral_norm"):
        train(total_nimg=48)


@pytest.mark.parametrize("content", [b"", b"garbage", "cut off", {"nimg": 3}, [1]])
def test_state_that_is_none_is_refused(train: StartRun, content: object) -> None:
    path = train().state_path
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="remove it to start again"):
        train()


def test_other_data_in_the_same_folder_are_refused(train: StartRun, latents: Latents) -> None:
    run = train()
    other = object.__new__(Latents)
    other.__dict__.update(latents.__dict__, index=replace(latents.index, fingerprint="another"))
    vae_folder = Path(run.vae.config._name_or_path)
    with pytest.raises(CheckpointError, match="another"):
        Run(run.config, other, vae_folder, run.folder)


# --- going wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["generator", "discriminator"])
def test_nan_stops_the_run_and_leaves_the_last_good_files(
    start: StartRun, train: StartRun, who: str
) -> None:
    before = read_files(train())
    run = start(total_nimg=48)
    module: nn.Module = getattr(run, who)
    with torch.no_grad():
        next(iter(module.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="not finite after 16 images"):
        run.train(snapshot_nimg=8, log_nimg=8, state_seconds=-1)
    assert read_files(run) == before


def test_gradient_that_is_not_finite_moves_no_weight(start: StartRun) -> None:
    run = start()
    before = [parameter.clone() for parameter in run.generator.parameters()]
    loss = sum(parameter.sum() for parameter in run.generator.parameters()) * float("inf")
    with pytest.raises(TrainingDiverged, match="generator's gradient"):
        run._descend(loss, run.generator, run.generator_optimizer)
    for mine, old in zip(run.generator.parameters(), before, strict=True):
        assert torch.equal(mine, old)


def test_data_of_another_shape_are_refused(start: StartRun, make_config: ConfigFactory) -> None:
    config = make_config()
    generator = GeneratorConfig.from_dict(config.generator.to_dict() | {"num_classes": 4})
    discriminator = replace(config.discriminator, num_classes=4)
    with pytest.raises(DataError, match=r"\(10, 8, 8\), tiny wants \(4, 8, 8\)"):
        start(generator=generator, discriminator=discriminator)


def test_intervals_of_nothing_are_refused(start: StartRun) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        start().train(snapshot_nimg=0, log_nimg=8)


# --- one step ------------------------------------------------------------------------------------


def test_first_step_moves_each_network_at_its_own_rate(start: StartRun) -> None:
    """Adam's first step is lr * g / (|g| + eps): lr wherever the gradient is not tiny."""
    run = start(base_lr=1e-2)
    networks = ((run.generator, 16), (run.discriminator, 32))
    before = [[p.detach().clone() for p in module.parameters()] for module, _ in networks]
    run.step()
    for (module, width), old in zip(networks, before, strict=True):
        pairs = zip(module.parameters(), old, strict=True)
        moved = torch.cat([(new.detach() - was).abs().flatten() for new, was in pairs])
        lr = 1e-2 * 768 / width * (8 / 512) ** 0.5
        assert float(moved.max()) == pytest.approx(lr, rel=1e-3)
        assert float(moved.median()) == pytest.approx(lr, rel=1e-2)


@pytest.mark.parametrize("gamma", [0.0, 1e4])
def test_gradients_are_clipped_at_norm_one(start: StartRun, gamma: float) -> None:
    run = start(gamma=gamma)
    numbers = run.step()
    for prefix, optimizer in (
        ("d", run.discriminator_optimizer),
        ("g", run.generator_optimizer),
    ):
        total = sum(float(state["exp_avg_sq"].sum()) for state in optimizer.state.values())
        clipped = min(numbers[f"{prefix}_norm"], 1.0)
        assert total == pytest.approx(0.01 * clipped**2, rel=1e-3)  # beta2 = 0.99, from 0
    assert (numbers["d_norm"] > 1) == (gamma > 0)


def test_generator_is_judged_by_the_discriminator_that_has_just_learned(start: StartRun) -> None:
    run = start()
    seen: list[bool] = []
    before = run.discriminator.patch_embedding.weight.detach().clone()
    generator_step = run.objective.generator_step

    def noting(*arguments: Any) -> dict[str, Tensor]:
        seen.append(torch.equal(run.discriminator.patch_embedding.weight, before))
        return generator_step(*arguments)

    run.objective.generator_step = noting  # type: ignore[method-assign]
    run.step()
    assert seen == [False]


def test_average_follows_the_generator(start: StartRun) -> None:
    run = start()
    run.step()
    before = {key: value.clone() for key, value in run.ema.named_parameters()}
    run.step()
    decay = ema_decay(16, 8)
    for key, value in run.generator.named_parameters():
        expected = decay * before[key] + (1 - decay) * value
        torch.testing.assert_close(run.ema.get_parameter(key), expected.detach())
    assert torch.equal(run.ema.w_avg, run.generator.w_avg)


# --- what it writes ------------------------------------------------------------------------------


def test_checkpoint_generates_what_the_run_generates(train: StartRun, latents: Latents) -> None:
    run = train()
    checkpoint = load_checkpoint(run.folder / WEIGHTS[0])
    z, y, psi = torch.randn(3, 64), torch.tensor([0, 5, 9]), torch.tensor([1.0, 0.5, 0.0])
    assert torch.equal(checkpoint.generator(z, y, psi), run.ema(z, y, psi))
    assert not torch.equal(checkpoint.generator(z, y), run.generator(z, y))  # averaged weights
    assert checkpoint.class_names == latents.index.class_names
    assert checkpoint.name == "tiny"
    assert checkpoint.training["nimg"] == 16
    assert TrainConfig.from_dict(checkpoint.training["config"]) == run.config
    assert checkpoint.training["data"]["fingerprint"] == latents.index.fingerprint


def test_discriminator_is_in_a_file_apart(train: StartRun) -> None:
    run = train()
    description, tensors = read_safetensors(run.folder / WEIGHTS[1])
    expected = run.discriminator.state_dict()
    assert description["discriminator"] == run.config.discriminator.to_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    _, served = read_safetensors(run.folder / WEIGHTS[0])
    assert {key.partition(".")[0] for key in served} == {"generator", "vae"}


def test_pictures_show_every_class_and_every_stage(whole: Run) -> None:
    names = {path.name for path in whole.folder.glob("*.png")}
    stamps = ("000000016", "000000032", "000000048")
    assert names == {f"{kind}-{at}.png" for kind in ("samples", "stages") for at in stamps}
    for kind, size in (  # pictures are enlarged twice; stages have gaps of 2 px
        ("samples", (12 * 64, 10 * 64)),
        ("stages", (2 * (3 * 34 - 2), 2 * (10 * 34 - 2))),
    ):
        with Image.open(whole.folder / f"{kind}-000000048.png") as picture:
            assert picture.size == size
            assert np.asarray(picture).std() > 0


def test_run_that_ends_between_snapshots_writes_a_last_one(train: StartRun) -> None:
    run = train(total_nimg=24)
    assert load_checkpoint(run.folder / WEIGHTS[0]).training["nimg"] == 24
    assert {path.name for path in run.folder.glob("samples-*")} == {
        f"samples-{nimg:09d}.png" for nimg in (16, 24)
    }


def test_run_folder_holds_nothing_half_written(train: StartRun) -> None:
    run = train()
    pictures = {f"{kind}-000000016.png" for kind in ("samples", "stages")}
    assert {path.name for path in run.folder.iterdir()} == {
        "state.pt", "log.jsonl", *WEIGHTS, *pictures,
    }  # fmt: skip
