"""`cat-serve generate` as a command: what it refuses, what it says, and which settings count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cat_serve.cli import main
from cat_serve.cli.writing import bar_of_images
from cat_serve.manifest import GOLDEN_NAME
from tests.serving.generating import Generate


def test_progress_is_for_a_terminal_or_for_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with bar_of_images(1000, "model") as bar:
        for _ in range(1000):
            bar.update()
    said = capsys.readouterr().err
    assert said.count("\r") <= 3  # begin and end; a log keeps every line
    assert "1000/1000" in said
    assert said.isascii()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "a.png"], "class is missing"),
        (["--class", "7", "--out", "a.gif"], "says no format"),
        (["--class", "sneeker", "--out", "a.png"], "did you mean 'sneaker'"),
        (["--class", "7", "--seeds", "9-3", "--out", "a.png"], "ends before it begins"),
        (["--class", "7", "--seeds", "4294967295-4294967296", "--out", "a.png"], "is above"),
        (["--class", "7", "--stage", "9", "--out", "a.png"], "3 stages"),
        (["--class", "7:0.7,9:0.7", "--out", "a.png"], "sum to 1.4"),
        (["--n", "5", "--class", "7:0.7,9:0.7", "--out", "a.npz"], "sum to 1.4"),
        (["--class", "7", "--truncation-psi", "2", "--out", "a.png"], "0 to 1"),
        (["--class", "7", "--truncation-psi", "nan", "--out", "a.png"], "0 to 1"),
        (["--n", "5", "--out", "a.png"], "makes samples"),
        (["--n", "5", "--stage", "1", "--out", "a.npz"], "makes samples"),
        (["--n", "5", "--format", "png", "--out", "a.npz"], "--format is for pictures"),
        (["--class", "7", "--seed", "5", "--out", "a.png"], "--seeds 5 makes the picture"),
        (["--class", "7", "--shard-size", "5", "--out", "a/"], "--shard-size is for samples"),
        (["--class", "7", "--format", "png", "--out", "a.jpg"], "a.jpg is a jpeg"),
        (["--n", "0", "--out", "a.npz"], "n is 0"),
        (["--n", "5", "--class", "zebra", "--out", "a.npz"], "no class 'zebra'"),
        (["--n", "5", "--batch", "0", "--out", "a.npz"], "CAT_SERVE_MAX_BATCH"),
        (["--n", "5", "--model", "other", "--out", "a.npz"], "models here: fashion-32"),
        (["--n", "5", "--out", "/dev/null/a.npz"], "/dev/null is no folder"),
        (["--class", "7", "--seeds", "0-9", "--out", "/dev/null/a.png"], "/dev/null is no folder"),
        (["--n", "5", "--shard-size", "0", "--out", "a.npz"], "shard_size is 0"),
    ],
)
def test_wrong_usage_is_told_and_leaves_no_file(
    flags: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *flags]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_backend_of_other_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAT_SERVE_TRITON_URL", "127.0.0.1:1")
    flags = ["--class", "7", "--out", str(tmp_path / "a.png"), "--backend", "triton"]
    assert main(["generate", *flags]) == 2
    assert "computes in other processes" in capsys.readouterr().err


def test_setting_of_the_environment_counts(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CAT_SERVE_PRECISION", "fp16")
    flags = ["--class", "7", "--seeds", "1", "--out", str(tmp_path / "a.png")]
    assert generate(*flags)["precision"] == "fp16"
    assert generate(*flags, "--precision", "fp32")["precision"] == "fp32"


def test_broken_artefact_is_a_failed_check(
    add_model: Any, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = add_model()
    (artefact.folder / GOLDEN_NAME).write_bytes(b"other")
    flags = ["--model-repository", str(repository), "--class", "1"]
    assert main(["generate", *flags, "--out", str(tmp_path / "a.png")]) == 1
    assert "golden.png of model 'toy' is not the file" in capsys.readouterr().err
