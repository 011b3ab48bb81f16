"""What single engines refuse."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cat_serve.backends import open_backend
from cat_serve.backends.base import EngineOptions
from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
from cat_serve.contract import Batch, Output
from cat_serve.errors import ArtefactError, BackendError, MissingDependency
from cat_serve.manifest import Artefact

AddModel = Callable[..., Artefact]


def with_manifest(artefact: Artefact, **changes: Any) -> Artefact:
    return dataclasses.replace(artefact, manifest=dataclasses.replace(artefact.manifest, **changes))


@pytest.mark.parametrize("changes", [{"z_shape": (63,)}, {"image_size": (64, 32)}])
def test_graph_that_does_not_fit_its_manifest_is_refused(
    shipped: Artefact, changes: dict[str, Any]
) -> None:
    with pytest.raises(ArtefactError, match="the contract says"):
        OnnxRuntimeBackend(with_manifest(shipped, **changes))


def test_damaged_graph_is_refused_without_its_path(shipped: Artefact, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtefactError, match="cannot load the model") as caught:
        OnnxRuntimeBackend(dataclasses.replace(shipped, folder=tmp_path))
    assert str(tmp_path) not in str(caught.value)


def test_provider_that_is_not_in_this_build_is_refused(
    shipped: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match="no CUDAExecutionProvider"):
        OnnxRuntimeBackend(shipped, provider="cuda")


def test_silent_fallback_to_another_provider_is_refused(
    shipped: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"]
    )
    with pytest.raises(MissingDependency, match="opened the model on AzureExecutionProvider"):
        OnnxRuntimeBackend(shipped, provider="cpu")


def test_failure_inside_onnx_runtime_is_a_backend_error(shipped: Artefact) -> None:
    backend = OnnxRuntimeBackend(shipped, threads=1)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        backend.run(
            Batch(np.zeros((1, 3), np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))
        )


PASSES_OF_MANY_SIZES = """
import random, sys
from pathlib import Path
import numpy as np, psutil
from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
from cat_serve.contract import Batch
from cat_serve.manifest import load_artefact
artefact = load_artefact(Path(sys.argv[1]))
backend = OnnxRuntimeBackend(artefact, threads=1)
def run(rows):
    z = np.ones((rows, *artefact.manifest.z_shape), np.float32)
    backend.run(Batch(z, np.zeros(rows, np.int64), np.ones(rows, np.float32)))
for _ in range(3):
    run(artefact.manifest.max_batch)
before, rng = psutil.Process().memory_info().rss, random.Random(0)
for number in range(90):
    run(artefact.manifest.max_batch if number % 10 == 0 else rng.choice([1, 2, rng.randint(1, 64)]))
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


@pytest.mark.slow
def test_passes_of_many_sizes_take_no_more_memory_than_the_largest(shipped: Artefact) -> None:
    """With ONNX Runtime's memory patterns it was 32 MiB more after these passes, and went on growing."""
    command = [sys.executable, "-W", "error", "-c", PASSES_OF_MANY_SIZES, str(shipped.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 8


def test_torch_engine_needs_the_checkpoint_of_this_export(
    shipped: Artefact, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="nothing says where"):
        open_backend("torch", shipped, EngineOptions())
    options = EngineOptions(checkpoints=tmp_path)
    with pytest.raises(ArtefactError, match=r"no checkpoint fashion-32\.safetensors"):
        open_backend("torch", shipped, options)
    (tmp_path / "fashion-32.safetensors").write_bytes(b"another")
    with pytest.raises(ArtefactError, match="is not the checkpoint"):
        open_backend("torch", shipped, options)


@pytest.mark.parametrize(
    "lie",
    [
        lambda answer: Output(answer.images[:, :4], answer.ok),
        lambda answer: Output(answer.images.astype(np.float32), answer.ok),
        lambda answer: Output(answer.images[:0], answer.ok),
        lambda answer: Output(answer.images, answer.ok.astype(np.int64)),
    ],
    ids=["shape", "dtype", "count", "flag"],
)
def test_answer_that_breaks_the_contract_is_refused(
    add_model: AddModel, lie: Callable[[Output], Output]
) -> None:
    backend = FakeBackend(add_model(), after=lie)
    with pytest.raises(BackendError, match="answered"):
        backend.run(
            Batch(np.zeros((1, 6), np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))
        )
