"""Several processes (gloo, on the CPU) act as one: same gradients, averages, log and files."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import TrainConfig
from training.data import Latents
from training.loop import Run

WORKER = Path(__file__).with_name("one_of_several.py")
TIMEOUT_S = 240
ConfigFactory = Callable[..., TrainConfig]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for one process."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port,
             "LOCAL_WORLD_SIZE": processes, "OMP_NUM_THREADS": 1}  # fmt: skip
    return os.environ | {key: str(value) for key, value in given.items()} | {
        "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def start_all(commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Run one command for each process to its end, at most TIMEOUT_S."""
    port = free_port()
    running = [
        subprocess.Popen(
            command, env=environment(rank, len(commands), port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=TIMEOUT_S) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, ended, strict=True)
    ]


@pytest.fixture
def together(
    prepared: Path, vae_folder: Path, tmp_path: Path
) -> Callable[..., list[dict[str, Any]]]:
    """Take steps in several processes; return what each of them has then."""

    def take(config: TrainConfig, processes: int, steps: int) -> list[dict[str, Any]]:
        out = str(tmp_path / "taken")
        command = [
            sys.executable, str(WORKER), json.dumps(config.to_dict()), str(prepared),
            str(vae_folder), str(tmp_path / "together"), str(steps), out,
        ]  # fmt: skip
        for ended in start_all([command] * processes):
            assert ended.returncode == 0, ended.stderr
        return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(processes)]

    return take


def alone(config: TrainConfig, prepared: Path, vae: Path, run: Path, steps: int) -> dict[str, Any]:
    """Take the same steps in this process."""
    spec = importlib.util.spec_from_file_location("one_of_several", WORKER)
    assert spec
    assert spec.loader
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker.take_steps(Run(config, Latents(prepared), vae, run), steps)


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest relative difference of any tensor, by norm."""
    assert mine.keys() == theirs.keys()
    return max(
        float((mine[key] - theirs[key]).norm() / theirs[key].norm().clamp(min=1e-30))
        for key in mine
    )


@pytest.mark.parametrize(
    "processes",
    [
        2,
        # shares of 2, 3 and 3 samples; the penalties look at samples 0 and 4, and none in the last
        pytest.param(3, marks=pytest.mark.slow),
    ],
)
def test_several_processes_take_the_steps_of_one(
    make_config: ConfigFactory, prepared: Path, vae_folder: Path, tmp_path: Path,
    together: Callable[..., list[dict[str, Any]]], processes: int,
) -> None:  # fmt: skip
    config = make_config(label_weight=0.3, gamma=50.0)  # penalties that matter beside the rest
    expected = alone(config, prepared, vae_folder, tmp_path / "alone", 3)
    taken = together(config, processes, 3)
    for got in taken:
        for network in ("generator", "critic"):
            mine, theirs = got["gradients"][network], expected["gradients"][network]
            assert all(gradient.dtype == torch.float64 for gradient in mine.values())
            assert difference(mine, theirs) < 1e-9, network
        for network in ("generator", "critic", "ema"):  # w_avg among them
            assert difference(got["networks"][network], expected["networks"][network]) < 1e-6
        for mine, theirs in zip(got["numbers"], expected["numbers"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-7)
    assert expected["numbers"][0]["d_norm"] > 1  # so that the clipping of the whole gradient shows
    for key, value in taken[0]["networks"]["ema"].items():  # equal, not only close
        assert all(torch.equal(value, other["networks"]["ema"][key]) for other in taken), key
