"""Sessions of ONNX Runtime: on the provider that was asked for and no other, of graphs that have the contract's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cat_serve.backends.base import Provider
from cat_serve.contract import BATCH, TensorSpec
from cat_serve.errors import ArtefactError, BackendError, MissingDependency
from cat_serve.manifest import Artefact, Manifest

# TF32 would be a precision of its own: float32 means float32. CPU stands last for single nodes that a GPU
# provider does not take (shape arithmetic); that the first provider is in use is checked after loading.
PROVIDERS: dict[Provider, list[tuple[str, dict[str, str]]]] = {
    "cpu": [("CPUExecutionProvider", {})],
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})],
    "tensorrt": [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ],
}
ONNX_DTYPES = {"float32": "float", "int64": "int64", "uint8": "uint8", "bool": "bool"}
ERRORS_ONLY = 3


class _Node(Protocol):
    name: str
    type: str
    shape: Sequence[int | str | None]


def run_session(
    session: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray], artefact: Artefact
) -> list[Any]:
    """Run a graph.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    try:
        answer: list[Any] = session.run(list(names), feeds)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(
            f"ONNX Runtime failed on {artefact.manifest.model}: {type(error).__name__}."
        ) from error
    return answer


def open_fitting(
    path: Path,
    manifest: Manifest,
    provider: Provider,
    threads: int,
    wanted_inputs: Sequence[TensorSpec],
    wanted_outputs: Sequence[TensorSpec],
) -> Any:
    """Load the graph at `path` on the provider that was asked for, with these inputs and outputs.

    Raises: see `open_session`, `require_provider` and `require_tensors`.
    """
    session = open_session(path, manifest.model, provider, threads)
    require_provider(session.get_providers(), provider)
    require_tensors(session.get_inputs(), wanted_inputs, manifest.model)
    require_tensors(session.get_outputs(), wanted_outputs, manifest.model)
    return session


def open_session(path: Path, model: str, provider: Provider, threads: int) -> Any:
    """Load the graph at `path`, of the model called `model`.

    Raises:
        MissingDependency: ONNX Runtime, or this build's support for the provider, is not installed.
        ArtefactError: ONNX Runtime cannot read the graph.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingDependency(
            "ONNX Runtime is not installed.",
            hint="pip install 'cat-serve[cpu]' or 'cat-serve[gpu]'",
        ) from error
    wanted = PROVIDERS[provider]
    if wanted[0][0] not in ort.get_available_providers():
        raise MissingDependency(
            f"This ONNX Runtime has no {wanted[0][0]}.",
            hint="for cuda and tensorrt: pip uninstall onnxruntime && pip install 'cat-serve[gpu]'",
        )
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    # A plan of memory is kept for every size of batch that was ever seen: with them a server grows for hours.
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ArtefactError(
            f"ONNX Runtime cannot load the model {model!r}: "
            f"{str(error).replace(str(path), path.name)}",
            hint="export it again: python -m export.onnx --help",
        ) from error
    session.disable_fallback()  # a provider that fails later must fail, not hand over to the CPU
    return session


def require_provider(in_use: Sequence[str], provider: Provider) -> None:
    """Refuse a session that ONNX Runtime opened on something else than was asked.

    Raises:
        MissingDependency: the provider's libraries or device are not there.
    """
    wanted = PROVIDERS[provider][0][0]
    if not in_use or in_use[0] != wanted:
        raise MissingDependency(
            f"ONNX Runtime opened the model on {', '.join(in_use) or 'nothing'}, not on {wanted}.",
            hint="install the driver and libraries it needs, or ask for --provider cpu",
        )


def require_tensors(nodes: Sequence[_Node], specs: Sequence[TensorSpec], model: str) -> None:
    """Refuse a graph whose inputs or outputs are not the contract's.

    Raises:
        ArtefactError: names, dtypes or shapes differ.
    """
    got = {node.name: (node.type, list(node.shape)) for node in nodes}
    wanted = {spec.name: (f"tensor({ONNX_DTYPES[spec.dtype]})", list(spec.shape)) for spec in specs}
    fits = got.keys() == wanted.keys() and all(
        got[name][0] == dtype and _shape_fits(got[name][1], shape)
        for name, (dtype, shape) in wanted.items()
    )
    if not fits:
        raise ArtefactError(
            f"The graph of {model!r} has tensors {got}, the contract says {wanted}.",
            hint="export it again: python -m export.onnx --help",
        )


def _shape_fits(got: Sequence[int | str | None], wanted: Sequence[int | str]) -> bool:
    """Compare shapes; the batch must be free, any other axis fixed as the contract says."""
    return len(got) == len(wanted) and all(
        not isinstance(a, int) if b == BATCH else a == b for a, b in zip(got, wanted, strict=True)
    )
