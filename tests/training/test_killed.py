"""Preparation that is killed (SIGKILL, no clean-up) at any moment goes on, and gives what an unharmed one gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cat_serve.errors import DataError
from training.data import Latents
from training.folder import ImageFolder
from training.prepare import prepare

WriteImages = Callable[..., Path]
COUNT = 24
NAMES = tuple(f"{label}/{number}.png" for label in "abc" for number in range(8))
PROGRAM = """
import sys, training.shards
from training.prepare import main
if __name__ == "__main__":
    training.shards.SHARD_SIZE = 6
    sys.exit(main(sys.argv[1:]))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_a_child(work: Callable[[], object]) -> int:
    """Run in a fork of this process, which ends without clean-up; return how it ended (waitpid's status)."""
    if (child := os.fork()) == 0:
        try:
            os.close(2)
            torch.set_num_threads(
                1
            )  # the threads of the pool were not copied, and would be waited for
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Kill a child at its n-th change of a folder's entries: half of the steps before it, half after."""
    left = step

    def counting(change: Callable[..., None]) -> Callable[..., None]:
        def changing(*arguments: object, **options: object) -> None:
            nonlocal left
            for done in (False, True):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not done:
                    change(*arguments, **options)

        return changing

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):  # as files are renamed and removed
            patch.setattr(os, name, counting(getattr(os, name)))
        return in_a_child(work) == signal.SIGKILL


@pytest.mark.slow  # it forks some twenty times
@pytest.mark.usefixtures("small_shards")
def test_kill_at_any_change_of_the_folder_loses_nothing(
    write_images: WriteImages,
    vae_folder: Path,
    tmp_path: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = ImageFolder(write_images(*NAMES), 32)
    prepare(vae_folder, source, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    steps = 0
    while True:
        out = tmp_path / f"cut-{steps}"
        if not killed_at(steps, monkeypatch, lambda out=out: prepare(vae_folder, source, out)):
            break
        finished = (out / "index.json").exists()
        if not finished:
            with pytest.raises(DataError, match="no prepared data"):
                Latents(out)
        there = len(list(out.glob("latents-*.npy")))
        encoded.clear()
        prepare(vae_folder, source, out)
        assert sum(encoded) == (0, 24 - min(24, 10 * there))[not finished], steps
        assert contents(out) == whole, steps
        steps += 1
    assert contents(out) == whole
    assert steps > 20  # progress, three notes, three shards, labels, files, index, and the tidying


@pytest.mark.slow
def test_process_that_is_killed_with_its_readers_goes_on(
    write_images: WriteImages, vae_folder: Path, tmp_path: Path
) -> None:
    """The real command with two processes that read, killed where it stands; its readers end with it."""
    images = write_images(*NAMES)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(out: str) -> subprocess.Popen[bytes]:
        flags = [
            "--images",
            str(images),
            "--size",
            "32",
            "--vae",
            str(vae_folder),
            "--workers",
            "2",
        ]
        return subprocess.Popen(
            [sys.executable, str(program), *flags, "--batch-size", "2", "--out", str(tmp_path / out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    assert start("whole").wait(240) == 0
    cut = tmp_path / "cut"
    for shard in (0, 2):
        process = start("cut")
        deadline = time.monotonic() + 120
        while not (cut / f"latents-{shard:05d}.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        readers = _children(process.pid)
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
        while any(_runs(reader) for reader in readers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert readers
        assert not any(_runs(reader) for reader in readers)
    assert start("cut").wait(240) == 0
    assert contents(cut) == contents(tmp_path / "whole")
    assert len(Latents(cut)) == COUNT
    assert np.load(cut / "latents-00003.npy").shape == (6, 16, 8, 8)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
