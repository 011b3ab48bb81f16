"""What both models need of Triton's python backend, whose module exists inside the server only."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cat_serve.errors import (
    ArtefactError,
    BackendUnavailable,
    CatServeError,
    InvalidInput,
    MissingDependency,
)

COMMAND = "python -m export.triton"


def backend_module() -> Any:
    """Return the python backend's module, once it was seen to keep tensors whole.

    Raises:
        MissingDependency: it corrupts the arrays of this numpy.
    """
    import triton_python_backend_utils as pb_utils

    require_whole_tensors(pb_utils)
    return pb_utils


def require_whole_tensors(pb_utils: Any) -> None:
    """Refuse a server that reads other numbers from a tensor than were put in.

    Servers of 2024 do that with numpy 2, without an error: images and classes would be garbage.

    Raises:
        MissingDependency: says which numpy to install where.
    """
    sent = np.arange(1, 65, dtype=np.float32)
    # from_dlpack makes an array out of memory as for a request's tensors; as_numpy alone returns what was given
    got = pb_utils.Tensor.from_dlpack("probe", pb_utils.Tensor("probe", sent)).as_numpy()
    if not np.array_equal(got, sent):
        raise MissingDependency(
            f"This Triton's python backend corrupts the tensors of numpy {np.__version__}.",
            hint="in the environment of the python3 that is first on Triton's PATH: pip install 'numpy<2'",
        )


def parameters(args: dict[str, str]) -> dict[str, str]:
    """Return the parameters of the configuration that the server hands to `initialize`."""
    configured = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in configured.items()}


def parameter(args: dict[str, str], name: str) -> str:
    """Return one parameter.

    Raises:
        ArtefactError: the configuration has no such parameter.
    """
    found = parameters(args)
    if name not in found:
        raise ArtefactError(
            f"The configuration of {args['model_name']} has no parameter {name!r}.",
            hint=f"write it again: {COMMAND} --help",
        )
    return found[name]


def column(pb_utils: Any, request: Any, name: str) -> np.ndarray | None:
    """Return an input as an array, its first axis the rows; None if the client left it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def refusal(pb_utils: Any, error: CatServeError) -> Any:
    """Return the response for one request that fails, its code as gRPC has it, its message with the hint."""
    codes = pb_utils.TritonError
    code = codes.INTERNAL
    if isinstance(error, InvalidInput):
        code = codes.INVALID_ARG
    elif isinstance(error, BackendUnavailable):
        code = codes.UNAVAILABLE
    return pb_utils.InferenceResponse(error=codes(str(error), code))


def cancelled(pb_utils: Any) -> Any:
    """Return the response for a request that nobody waits for any more."""
    error = pb_utils.TritonError
    return pb_utils.InferenceResponse(error=error("The client has cancelled.", error.CANCELLED))
