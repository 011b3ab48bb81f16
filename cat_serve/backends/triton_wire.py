"""What goes between this process and a Triton server: tensors, the model's configuration, and failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from grpc import StatusCode
from grpc.aio import AioRpcError
from tritonclient.grpc import InferResult, model_config_pb2, service_pb2
from tritonclient.utils import np_to_triton_dtype

from cat_serve.backends.base import checked
from cat_serve.contract import (
    BATCH,
    IMAGES,
    OK,
    OUTPUT_NAMES,
    Batch,
    Output,
    Precision,
    TensorSpec,
    inputs,
    outputs,
)
from cat_serve.deadlines import Deadline
from cat_serve.errors import (
    ArtefactError,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    CatServeError,
    Overloaded,
)
from cat_serve.manifest import GRAPH_NAMES, Artefact, Determinism
from cat_serve.triton_models.tensors import PRECISION, VERSION, version_key

RETRY_AFTER_S = 1
LATE_S = 0.1  # a queue's clock and ours may differ by so much

# Triton says all of this with one status, UNAVAILABLE, which is also that of a server that is gone.
QUEUE_FULL = "Exceeds maximum queue size"
QUEUE_TIMEOUT = "Request timeout expired"
GONE = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)


@dataclass
class CallFailed(Exception):
    """One server's call failed.

    Attributes:
        error: what to tell if this was the last attempt.
        elsewhere: whether another server may do better.
        doubtful: whether this server must prove itself again.
        broken_off: whether the server, or the connection to it, went away.
    """

    error: CatServeError
    elsewhere: bool = True
    doubtful: bool = True
    broken_off: bool = False


def infer_request(batch: Batch, artefact: Artefact, deadline: Deadline) -> Any:
    """Return the `ModelInferRequest` for a batch, which also says how long it may wait in the server's queue.

    Scalars of a row have the shape [B, 1], as in every Triton configuration.
    """
    request = service_pb2.ModelInferRequest(
        model_name=artefact.manifest.model, model_version=artefact.folder.name
    )
    feeds = batch.feeds()
    for spec in inputs(artefact.manifest.z_shape):
        values = feeds[spec.name].astype(spec.dtype, order="C", copy=False)
        shape = (len(batch), *_dims(spec))
        request.inputs.add(name=spec.name, datatype=_datatype(spec), shape=shape)
        request.raw_input_contents.append(values.tobytes())
    for name in OUTPUT_NAMES:
        request.outputs.add(name=name)
    if deadline.exists:
        request.parameters["timeout"].int64_param = max(1, int(1e6 * deadline.left_s))
    return request


def read_output(response: Any, batch: Batch, artefact: Artefact) -> Output:
    """Return what a server answered to `batch` with a `ModelInferResponse`.

    Raises:
        BackendError: an output is missing, or has another shape or dtype than the contract says.
    """
    result = InferResult(response)
    try:
        images, ok = result.as_numpy(IMAGES), result.as_numpy(OK)
    except ValueError as error:  # the bytes do not fill the shape
        raise BackendError(
            f"A Triton server's answer for {artefact.manifest.model} is broken."
        ) from error
    if ok is not None and ok.shape == (len(batch), 1):
        ok = ok[:, 0]
    return checked(images, ok, batch, artefact)


def require_fits(
    config: Any, artefact: Artefact, precision: Precision, max_batch: int
) -> Determinism:
    """Refuse a server whose configuration is not that of `artefact`; return what its bytes promise.

    Args:
        config: a `model_config_pb2.ModelConfig`.
        precision: what this server was asked to serve.
        max_batch: the largest call that it will get.

    Raises:
        ArtefactError: another version, precision, tensor or batch size.
    """
    manifest = artefact.manifest
    _require_parameters(config, artefact, precision)
    for got, specs in (
        (config.input, inputs(manifest.z_shape)),
        (config.output, outputs(manifest.image_size)),
    ):
        _require_tensors(manifest.model, got, specs)
    if config.max_batch_size < max_batch:
        raise ArtefactError(
            f"It takes {config.max_batch_size} images a call, and gets up to {max_batch}.",
            hint=f"set CAT_SERVE_MAX_BATCH (or --max-batch) to {config.max_batch_size}",
        )
    # Measured was ONNX Runtime on a CPU, which the python model that is written for a version runs.
    record = manifest.files.get(GRAPH_NAMES[precision])
    named = _parameter(config, PRECISION) is not None and _version(config, artefact) is not None
    measured = config.backend == "python" and named and record is not None
    return (record.determinism if measured and record else None) or "latent"


def failure(error: AioRpcError, deadline: Deadline) -> CallFailed:
    """Say what a failed call means."""
    code, said = error.code(), error.details() or ""
    if code is StatusCode.INVALID_ARGUMENT:
        refused = BackendError("A Triton server refused the inputs.")
        return CallFailed(refused, elsewhere=False, doubtful=False)
    if code is StatusCode.UNAVAILABLE and QUEUE_FULL in said:
        full = Overloaded(
            "The queue of the Triton server is full.",
            hint=f"try again in {RETRY_AFTER_S} s",
            retry_after_s=RETRY_AFTER_S,
        )
        return CallFailed(full, doubtful=False)
    if code is StatusCode.UNAVAILABLE and QUEUE_TIMEOUT in said:
        if deadline.left_s < LATE_S:
            return CallFailed(deadline.exceeded("queue"), elsewhere=False, doubtful=False)
        waited = BackendTimeout("The request waited too long in the queue of the Triton server.")
        return CallFailed(waited, doubtful=False)
    if code is StatusCode.DEADLINE_EXCEEDED and deadline.left_s < LATE_S:
        return CallFailed(deadline.exceeded("generate"), elsewhere=False, doubtful=False)
    failed = BackendError(f"A Triton server failed with {code.name}.")
    return CallFailed(failed, broken_off=code in GONE)


def unreachable(error: AioRpcError) -> BackendUnavailable:
    """Return the error of a server that does not answer questions about itself."""
    return BackendUnavailable(f"It answers {error.code().name}: {error.details()}")


def _require_parameters(config: Any, artefact: Artefact, precision: Precision) -> None:
    served = _version(config, artefact)
    if served not in (None, artefact.version):
        raise ArtefactError(
            f"It serves version {served} of {artefact.manifest.model}, not {artefact.version}.",
            hint="give the server and cat-serve the same model repository",
        )
    if _parameter(config, PRECISION) not in (None, precision):
        raise ArtefactError(
            f"It serves {_parameter(config, PRECISION)}, and {precision} was asked for.",
            hint="set CAT_SERVE_PRECISION (or --precision), or write the server's configuration again",
        )


def _require_tensors(model: str, got: Any, specs: tuple[TensorSpec, ...]) -> None:
    types = model_config_pb2.DataType
    served = {tensor.name: (types.Name(tensor.data_type), tuple(tensor.dims)) for tensor in got}
    wanted = {spec.name: (f"TYPE_{_datatype(spec)}", _dims(spec)) for spec in specs}
    if served != wanted:
        raise ArtefactError(
            f"Its tensors of {model} are {served}, the contract says {wanted}.",
            hint="give the server and cat-serve the same model repository",
        )


def _dims(spec: TensorSpec) -> tuple[int, ...]:
    """Return a tensor's shape in a configuration: without the batch, and never empty."""
    return tuple(size for size in spec.shape if size != BATCH and isinstance(size, int)) or (1,)


def _datatype(spec: TensorSpec) -> str:
    return str(np_to_triton_dtype(np.dtype(spec.dtype)))


def _version(config: Any, artefact: Artefact) -> str | None:
    folder = artefact.folder.name
    own = _parameter(config, version_key(int(folder))) if folder.isdecimal() else None
    return own or _parameter(config, VERSION)


def _parameter(config: Any, name: str) -> str | None:
    if name not in config.parameters:
        return None
    return str(config.parameters[name].string_value) or None
