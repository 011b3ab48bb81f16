"""Several processes (gloo, on the CPU) act as one: same gradients, averages, log and files."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.model.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.data import Latents
from training.loop import Run
from training.share import Share
from training.train import main

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


def train_flags(prepared: Path, vae: Path, run: Path, total_nimg: int) -> list[str]:
    return [
        "--preset", "fashion-32", "--data", str(prepared), "--vae", str(vae), "--run-folder", str(run),
        "--width", "16", "--batch-size", "8", "--total-nimg", str(total_nimg), "--log-nimg", "8",
        "--snapshot-nimg", "16", "--timeout-minutes", "1",
    ]  # fmt: skip


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second")}
        for line in lines
    ]


# as docs/training.md gives them, but for the port, which is free here
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "-m", "training.train"],
    "accelerate": [
        "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "training.train", "--cpu",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_run_goes_on_with_another_number_of_processes(
    prepared: Path,
    vae_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    launcher: str,
) -> None:
    """One process, then two under a launcher, then one again: the run of one process all along."""
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert main(train_flags(prepared, vae_folder, one, 48)) == 0
    assert main(train_flags(prepared, vae_folder, parts, 16)) == 0
    launch = [sys.executable, "-m", *LAUNCHERS[launcher]]
    command = [*launch, *train_flags(prepared, vae_folder, parts, 32)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    two = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert two.returncode == 0, two.stderr
    assert [json.loads(line)["nimg"] for line in two.stdout.splitlines()] == [32]  # said once
    assert load_checkpoint(parts / "fashion-32.safetensors").training["runtime"]["processes"] == 2
    assert main(train_flags(prepared, vae_folder, parts, 48)) == 0
    capsys.readouterr()

    mine, theirs = (torch.load(run / "state.pt", weights_only=True) for run in (parts, one))
    assert mine["nimg"] == theirs["nimg"] == 48
    for network in ("generator", "critic", "ema"):
        assert difference(mine[network], theirs[network]) < 1e-3
    for line, expected in zip(read_log(parts), read_log(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-2, abs=1e-4)
    pictures = [sorted(path.name for path in run.glob("*.png")) for run in (parts, one)]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_process_that_dies_ends_the_run_with_a_sentence(
    prepared: Path, vae_folder: Path, tmp_path: Path
) -> None:
    flags = train_flags(prepared, vae_folder, tmp_path / "run", 8_000_000)
    command = [sys.executable, "-m", "training.train", *flags]
    port, log = free_port(), tmp_path / "run" / "log.jsonl"
    first, second = (
        subprocess.Popen(command, env=environment(rank, 2, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not log.exists() and time.monotonic() < deadline:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.2)
        second.kill()
        _, said = first.communicate(timeout=TIMEOUT_S)
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode == 1
    assert "error: The other processes of this run do not answer" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_processes_that_see_other_run_folders_are_refused(
    prepared: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_flags(prepared, vae_folder, tmp_path / "here", 16)) == 0
    capsys.readouterr()
    commands = [
        [sys.executable, "-m", "training.train", *train_flags(prepared, vae_folder, folder, 32)]
        for folder in (tmp_path / "here", tmp_path / "there")
    ]
    for ended in start_all(commands):
        assert ended.returncode == 1
        assert "at different points: 0 and 16 images" in ended.stderr


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "total"), [(1, 8), (2, 8), (3, 8), (8, 8), (5, 12)])
def test_shares_make_up_the_batch(processes: int, total: int) -> None:
    batch = torch.arange(total)
    shares = [Share.of(rank, processes, total) for rank in range(processes)]
    assert torch.equal(torch.cat([batch[share.rows] for share in shares]), batch)
    assert sum(share.weight for share in shares) == pytest.approx(1)
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("every", [1, 3, 4, 20])
def test_every_nth_sample_is_counted_over_the_whole_batch(every: int) -> None:
    batch = torch.arange(13)
    for processes in (1, 2, 5, 13):
        shares = [Share.of(rank, processes, 13) for rank in range(processes)]
        picked = [
            (batch[share.rows][share.every(every)[0]], share.every(every)[1]) for share in shares
        ]
        assert torch.equal(torch.cat([rows for rows, _ in picked]), batch[::every])
        for rows, part in picked:
            assert torch.equal(batch[::every][part.rows], rows)
            assert part.total == len(batch[::every])


def test_batch_smaller_than_the_processes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="batch of 2 is too small for 3 processes"):
        Share.of(0, 3, 2)
