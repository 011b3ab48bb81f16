"""A model that takes a while: an export of random weights, made once and kept. Its images are noise, its work is real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos.servers import ROOT
from cat_serve.errors import MissingDependency

# 128 px behind the decoder of TAESD's shape: 0.1 to 0.3 s an image on one core
SHAPE = ("--size", "tiny", "--depth", "4", "--tiny", "--image-size", "128")
EXPORT = ("--precision", "fp32", "--studio-precision", "none", "--parity-classes", "1", "--max-batch", "16")  # fmt: skip
NAME = "cat-random-128"


def heavy_repository(folder: Path) -> Path:
    """Return a model repository in `folder` with that model; make it if it is not there, which takes minutes.

    Raises:
        MissingDependency: it could not be made.
    """
    repository = folder / "models"
    if (repository / NAME / "1" / "manifest.json").is_file():
        return repository
    _run("export.random_checkpoint", *SHAPE, "--out", str(folder / "checkpoints"))
    checkpoint = folder / "checkpoints" / f"{NAME}.safetensors"
    _run("export.onnx", str(checkpoint), "--repository", str(repository), *EXPORT)
    return repository


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise MissingDependency(
            f"python -m {module} failed: {done.stderr.strip()[-500:]}",
            hint="pip install 'cat-serve[cpu,export,dev]'",
        )
