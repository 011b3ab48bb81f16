"""The engine model of Triton's python backend: the tensor contract, computed by ONNX Runtime.

It is for machines without a GPU; where there is one, Triton's own backends run the same graphs. The tensors and
what they mean are the same in all of them: a class or psi out of range makes that row's `ok` false.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cat_serve.backends import open_backend
from cat_serve.backends.base import EngineOptions
from cat_serve.contract import CLASS_ID, IMAGES, OK, TRUNCATION_PSI, Batch, Output, Z
from cat_serve.manifest import load_artefact
from cat_serve.passes import concatenated, sliced


class TritonPythonModel:
    """What the python backend's stub creates, once for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        self._pb = pb_utils
        parameters = {
            name: value["string_value"]
            for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        artefact = load_artefact(Path(args["model_repository"]) / args["model_version"])
        options = EngineOptions(
            threads=int(parameters["threads"]), precision=parameters["precision"]
        )
        self._backend = open_backend("onnxruntime", artefact, options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        batches = [self._batch(request) for request in requests]
        output = self._backend.run(concatenated(batches))
        responses, first = [], 0
        for batch in batches:
            responses.append(self._response(sliced(output, slice(first, first + len(batch)))))
            first += len(batch)
        return responses

    def finalize(self) -> None:
        self._backend.close()

    def _batch(self, request: Any) -> Batch:
        z, class_id, psi = (
            self._pb.get_input_tensor_by_name(request, name).as_numpy()
            for name in (Z, CLASS_ID, TRUNCATION_PSI)
        )
        return Batch(z, class_id, psi)

    def _response(self, output: Output) -> Any:
        tensor = self._pb.Tensor
        return self._pb.InferenceResponse([tensor(IMAGES, output.images), tensor(OK, output.ok)])
