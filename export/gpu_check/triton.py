"""Serve an engine with Triton, as `export.triton` configures it, and hold what comes over gRPC to the engine's own."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.contract import OUTPUT_NAMES, Output
from cat_serve.errors import BackendError, CatServeError

if TYPE_CHECKING:
    from cat_serve.contract import Batch, Precision
    from cat_serve.manifest import Artefact
    from export.triton_server.installation import Installation

DEADLINE_S = 60.0
SIZES = (1, 8)
LOG_LINES = 20


@dataclass(frozen=True)
class Served:
    """One engine that Triton is to serve.

    Attributes:
        kind: `--engine` of export.triton: tensorrt_plan, or python, which computes the graph on the CPU.
        plan: the engine's file; only a tensorrt_plan needs it.
        output: what the engine made without Triton.
    """

    kind: str
    precision: Precision
    plan: Path
    max_batch: int
    output: Output


class TritonEngine:
    """One model of a Triton server, called as an engine is."""

    def __init__(self, client: Any, model: str) -> None:
        self._client, self._model = client, model

    def __call__(self, batch: Batch) -> Output:
        """Make images over gRPC.

        Raises:
            BackendError: the server refused, failed or did not answer in time.
        """
        from tritonclient.grpc import InferInput
        from tritonclient.utils import InferenceServerException, np_to_triton_dtype

        tensors = []
        for name, array in batch.feeds().items():
            column = array[:, None] if array.ndim == 1 else array  # a number a row is [B, 1] there
            tensors.append(InferInput(name, list(column.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(column)
        try:
            answer = self._client.infer(self._model, tensors, client_timeout=DEADLINE_S)
        except InferenceServerException as error:
            raise BackendError(f"it failed on {self._model}: {error}.") from error
        images, ok = (answer.as_numpy(name) for name in OUTPUT_NAMES)
        return Output(images, ok.reshape(len(batch)))


def lay_out(repository: Path, artefact: Artefact, served: Served) -> None:
    """Write a model repository of one model, configured as a user would.

    Raises:
        ArtefactError: the plan was not built from the model's graph.
    """
    from export.triton import __main__ as triton
    from export.trt.record import record_path

    version = repository / artefact.manifest.model / "1"
    version.mkdir(parents=True)
    for name in ("manifest.json", *artefact.manifest.files):
        shutil.copyfile(artefact.folder / name, version / name)
    if served.kind == "tensorrt_plan":
        plan = version / "model.plan"
        shutil.copyfile(served.plan, plan)
        shutil.copyfile(record_path(served.plan), record_path(plan))
    words = [str(repository), "--engine", served.kind, "--precision", served.precision,
             "--max-batch", str(served.max_batch), "--without-cat"]  # fmt: skip
    triton.work(triton.build_parser().parse_args(words))


def check_triton(
    installation: Installation, artefact: Artefact, served: Served, batch: Batch, repeats: int
) -> dict[str, Any]:
    """Start a server with one engine, and compare.

    Returns:
        `failures` in words, the server's version, how far its images of `batch` are from the engine's, and how long
        it takes; or the end of the server's log.
    """
    from tritonclient.grpc import InferenceServerClient

    from export.triton_server.server import Ports, TritonServer

    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        repository = Path(folder) / "models"
        try:
            lay_out(repository, artefact, served)
            with TritonServer(repository, installation, Ports.free(), log=log) as server:
                server.wait_ready()
                with InferenceServerClient(server.grpc_url) as client:
                    version = client.get_server_metadata().version
                    engine = TritonEngine(client, artefact.manifest.model)
                    report = compare_served(engine, served, batch, repeats)
        except CatServeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            failure = f"Triton with {served.precision}: {error.message}"
            return {"precision": served.precision, "failures": [failure], "log": said}
    return {"precision": served.precision, "version": version} | report


def compare_served(
    engine: TritonEngine, served: Served, batch: Batch, repeats: int
) -> dict[str, Any]:
    """Return how far Triton's images are from the engine's own, and how long Triton takes."""
    from export.parity import BUDGETS, compare
    from export.probes import RUN_BATCH, in_batches
    from export.trt import latency

    largest = min(served.max_batch, len(batch))
    difference = compare(served.output, in_batches(engine, batch, min(RUN_BATCH, largest)))
    allowed = BUDGETS[served.precision].rows_levels
    failures = []
    if difference.max_levels > allowed or difference.not_ok:
        failures.append(
            f"Triton's {served.precision} images differ from the engine's own by {difference.max_levels} levels, "
            f"{difference.not_ok} rows not ok; {allowed} levels are allowed."
        )
    timed = latency.measure(engine, batch, [n for n in SIZES if n <= largest], repeats)
    return {
        "failures": failures,
        "max_levels": difference.max_levels,
        "allowed_levels": allowed,
        "share_differing": difference.share_differing,
        "latency": [each.to_dict() for each in timed],
    }
