"""The engine model of Triton's python backend: the tensor contract, computed by ONNX Runtime on the CPU.

Where there is a GPU, Triton's own backends run the same graphs. Tensors and what they mean are the same in all of
them: a class or truncation_psi out of range makes that row's `ok` false, and no request fails for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from cat_serve.backends import open_backend
from cat_serve.backends.base import Backend, EngineOptions
from cat_serve.contract import CLASS_ID, IMAGES, INPUT_NAMES, OK, TRUNCATION_PSI, Batch, Output, Z
from cat_serve.errors import ArtefactError, BackendError
from cat_serve.golden import check_golden
from cat_serve.manifest import GRAPH_NAMES, Artefact, load_artefact
from cat_serve.passes import concatenated, sliced
from cat_serve.triton_models import stub
from cat_serve.triton_models.tensors import PRECISION, THREADS, version_key


class TritonPythonModel:
    """One instance of the model; the server's stub creates it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artefact of this version and let it prove itself.

        Raises:
            ArtefactError: it is damaged, or not the one the configuration was written for.
            BadOutput: it does not make its golden images.
        """
        self._pb = stub.backend_module()
        folder = Path(args["model_repository"]) / args["model_version"]
        self._backend = open_engine(load_artefact(folder), args)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer several requests with as few forward passes as the model allows."""
        batches = {
            index: self._batch(request)
            for index, request in enumerate(requests)
            if not request.is_cancelled()
        }
        outcomes = run_together(self._backend, list(batches.values()))
        made = dict(zip(batches, outcomes, strict=True))
        return [
            self._response(made[index]) if index in made else stub.cancelled(self._pb)
            for index in range(len(requests))
        ]

    def finalize(self) -> None:
        self._backend.close()

    def _batch(self, request: Any) -> Batch:
        # the server has checked names, dtypes and shapes
        columns = {name: stub.column(self._pb, request, name) for name in INPUT_NAMES}
        given = cast(dict[str, np.ndarray], columns)
        return Batch(given[Z], given[CLASS_ID], given[TRUNCATION_PSI])

    def _response(self, outcome: Output | BackendError) -> Any:
        if isinstance(outcome, BackendError):
            return stub.refusal(self._pb, outcome)
        tensor = self._pb.Tensor
        return self._pb.InferenceResponse([tensor(IMAGES, outcome.images), tensor(OK, outcome.ok)])


def open_engine(artefact: Artefact, args: dict[str, str]) -> Backend:
    """Open the graph that the configuration names.

    Raises:
        ArtefactError: the configuration was written for another artefact, or names no graph of this one.
        BadOutput: the engine does not make the golden images.
    """
    expected = stub.parameters(args).get(version_key(int(args["model_version"])))
    if expected != artefact.version:
        raise ArtefactError(
            f"The configuration of {args['model_name']} was written for version {expected}, and "
            f"the folder {args['model_version']} holds {artefact.version}.",
            hint=f"write it again: {stub.COMMAND} --help",
        )
    precision, threads = (stub.parameter(args, name) for name in (PRECISION, THREADS))
    known = next((name for name in GRAPH_NAMES if name == precision), None)
    if known is None or not threads.isdecimal():
        raise ArtefactError(
            f"The configuration of {args['model_name']} asks for precision {precision!r} and threads "
            f"{threads!r}.",
            hint=f"precision is one of {', '.join(GRAPH_NAMES)}, threads a number; 0 leaves it to the engine",
        )
    options = EngineOptions(threads=int(threads), precision=known)
    backend = open_backend("onnxruntime", artefact, options)
    check_golden(backend)
    return backend


def run_together(backend: Backend, batches: Sequence[Batch]) -> list[Output | BackendError]:
    """Return for every batch its output, or why it failed.

    All rows go through the engine together, as many at once as the model takes. If that fails, each batch
    is tried alone, so that one that the engine cannot take fails none of the others.
    """
    if not batches:
        return []
    try:
        output = _in_passes(backend, concatenated(batches))
    except BackendError as error:
        if len(batches) == 1:
            return [error]
        return [outcome for batch in batches for outcome in run_together(backend, [batch])]
    ends = np.cumsum([len(batch) for batch in batches])
    starts = [0, *ends[:-1]]
    return [sliced(output, slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def _in_passes(backend: Backend, rows: Batch) -> Output:
    most = backend.artefact.manifest.max_batch
    starts = range(0, len(rows), most)
    return concatenated([backend.run(sliced(rows, slice(i, i + most))) for i in starts])
