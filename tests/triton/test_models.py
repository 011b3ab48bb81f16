"""The shipped repository on a real Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc

from cat_serve.backends import open_backend
from cat_serve.backends.base import EngineOptions
from cat_serve.contract import Batch
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import load_artefact
from export.triton_server import TritonServer


def test_engine_makes_the_bytes_of_the_embedded_one(
    triton_server: TritonServer, project_root: Path
) -> None:
    artefact = load_artefact(project_root / "model_repository" / "fashion-32" / "1")
    batch = Batch(
        latents_from_seeds(range(3), (64,)), np.array([0, 3, 9]), np.array([1, 0.5, 0], np.float32)
    )
    expected = open_backend("onnxruntime", artefact, EngineOptions(threads=1)).run(batch)
    inputs = []
    for name, values, dtype in (
        ("z", batch.z, "FP32"),
        ("class_id", batch.class_id[:, None], "INT64"),
        ("truncation_psi", batch.truncation_psi[:, None], "FP32"),
    ):
        tensor = grpc.InferInput(name, values.shape, dtype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with grpc.InferenceServerClient(triton_server.grpc_url) as client:
        answer = client.infer("fashion-32", inputs)
    assert (answer.as_numpy("images") == expected.images).all()
    assert answer.as_numpy("ok").shape == (3, 1)
