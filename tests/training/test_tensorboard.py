"""TensorBoard shows what log.jsonl says, once, whatever interrupted the run."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cat_serve.errors import MissingDependency
from training.config import TrainConfig
from training.data import Latents
from training.loop import Run

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")

StartRun = Callable[..., Run]


@pytest.fixture
def start(
    make_config: Callable[..., TrainConfig], latents: Latents, vae_folder: Path, tmp_path: Path
) -> StartRun:
    def make(total_nimg: int) -> Run:
        config = make_config(total_nimg=total_nimg)
        return Run(config, latents, vae_folder, tmp_path / "run", tensorboard=True)

    return make


def read_board(folder: Path) -> Any:
    """Read the folder as TensorBoard itself does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return board.Reload()


def test_curves_are_those_of_the_log_and_pictures_are_there(start: StartRun) -> None:
    run = start(16)
    run.train(snapshot_nimg=16, log_nimg=8)
    board = read_board(run.folder)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    for key in ("d_adv", "g_adv", "consistency", "r1", "images_per_second"):
        points = [(event.step, event.value) for event in board.Scalars(key)]
        assert points == [(line["nimg"], pytest.approx(line[key], rel=1e-4)) for line in lines]
    for kind in ("samples", "stages"):
        (picture,) = board.Images(kind)
        assert picture.step == 16
        assert picture.encoded_image_string.startswith(b"\x89PNG")


def test_steps_after_the_last_state_are_not_shown_twice(
    start: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(16).train(snapshot_nimg=100, log_nimg=8)  # its state is at 16
    step = Run.step

    def step_or_stop(run: Run) -> dict[str, float]:
        if run.nimg == 32:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            start(48).train(snapshot_nimg=100, log_nimg=8)  # logged at 24 and 32, no state
    start(48).train(snapshot_nimg=100, log_nimg=8)
    board = read_board(start(48).folder)
    assert [event.step for event in board.Scalars("d_adv")] == [8, 16, 24, 32, 40, 48]


def test_missing_package_is_said_before_the_work(
    start: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"cat-serve\[train\]"):
        start(16)
    assert not (tmp_path / "run").exists()


def test_without_the_flag_nothing_is_written(
    make_config: Callable[..., TrainConfig], latents: Latents, vae_folder: Path, tmp_path: Path
) -> None:
    run = Run(make_config(), latents, vae_folder, tmp_path / "run")
    run.train(snapshot_nimg=100, log_nimg=8)
    assert not (run.folder / "tensorboard").exists()
