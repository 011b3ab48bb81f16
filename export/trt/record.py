"""The file beside every TensorRT engine, ENGINE.json: what it was built from and for, and how it compared.

{"format", "key", "key_sha256", "engine": {"sha256", "size_bytes"}, "source", "graph", "inputs",
 "outputs", "command", "timing", "parity"}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import ArtefactError, InvalidInput
from cat_serve.files import sha256_of, write_text

if TYPE_CHECKING:
    from export.trt.device import Gpu
    from export.trt.options import BuildOptions

FORMAT = "cat-serve-engine-1"
BUILD_AGAIN = "build it again: python -m export.trt --help"
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class GraphFacts:
    """What decides the engine of an ONNX graph.

    Attributes:
        sha256: of the file.
        external: sha256 of every file of weights beside it, by the name that the graph knows it by.
        precision: the row of the budgets for its images; networks are strongly typed, so it is the engine's too.
    """

    sha256: str
    external: dict[str, str]
    precision: str


def read_graph(graph: Path) -> GraphFacts:
    """Read which files a graph has and how exactly it computes, without its weights.

    Raises:
        ArtefactError: it is not there, is no ONNX graph, or lacks a file of weights.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not graph.is_file():
        raise ArtefactError(f"There is no graph {graph}.", hint="python -m export.onnx --help")
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except DecodeError as error:
        raise ArtefactError(f"{graph.name} is no ONNX graph: {error}.") from error
    tensors = list(_tensors(model.graph))
    names = sorted({entry.value for tensor in tensors for entry in tensor.external_data
                    if entry.key == "location"})  # fmt: skip
    if lacking := [name for name in names if not (graph.parent / name).is_file()]:
        raise ArtefactError(f"{graph.name} needs {', '.join(lacking)} beside it.")
    external = {name: sha256_of(graph.parent / name) for name in names}
    return GraphFacts(sha256_of(graph), external, _precision(model.graph, tensors))


def _tensors(graph: Any) -> Any:
    """Yield every constant of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _precision(graph: Any, tensors: list[Any]) -> str:
    """Return the coarsest precision that weights are held in."""
    import onnx

    if any(node.op_type == "DequantizeLinear" for node in graph.node):
        return "int8"
    held = {tensor.data_type for tensor in tensors}
    if onnx.TensorProto.BFLOAT16 in held:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in held else "fp32"


def engine_key(
    graph: GraphFacts, options: BuildOptions, version: str, gpu: Gpu | None, platform: str
) -> dict[str, Any]:
    """Return everything that decides an engine's bytes or where it runs, as JSON.

    Args:
        version: all of it, of the builder: engines of another build number do not load.
        gpu: None for TensorRT-RTX, whose engines belong to the compute capabilities in the options.
        platform: such as linux-x86_64; engines do not move between them.
    """
    return {
        "graph": asdict(graph),
        "options": options.facts(),
        "version": version,
        "gpu": None if gpu is None else {"name": gpu.name, "compute_capability": gpu.compute_capability},
        "platform": platform,
        "refitted": False,
    }  # fmt: skip


def key_sha256(key: Mapping[str, Any]) -> str:
    """Return the name of a key: the SHA-256 of its canonical JSON, 64 hex digits."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(graph: Path, facts: GraphFacts) -> dict[str, Any]:
    """Return which model a graph is of, as the manifest beside it says; only its name if none describes this file."""
    from cat_serve.manifest import load_artefact

    source: dict[str, Any] = {"graph": graph.name, "model": None}
    try:
        artefact = load_artefact(graph.parent)
    except ArtefactError:
        return source
    described = artefact.manifest.files.get(graph.name)
    if described is None or described.sha256 != facts.sha256:
        return source
    return source | {
        "model": artefact.manifest.model,
        "model_version": artefact.version,
        "checkpoint_sha256": artefact.manifest.source.get("checkpoint_sha256"),
        "num_classes": artefact.manifest.num_classes,
        "z_shape": list(artefact.manifest.z_shape),
    }


def record_path(engine: Path) -> Path:
    """Return where an engine's record lies."""
    return engine.with_name(engine.name + ".json")


def write_record(engine: Path, record: Mapping[str, Any]) -> None:
    """Write the record beside the engine."""
    write_text(record_path(engine), json.dumps(record, indent=1) + "\n")


def read_record(engine: Path) -> dict[str, Any]:
    """Read the record of an engine, and hold the engine to it.

    Raises:
        ArtefactError: no record, one of another format or that contradicts itself, or an engine that it is not of.
    """
    path = record_path(engine)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{engine.name} has no record {path.name}.", hint=BUILD_AGAIN
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtefactError(f"{path.name} is no record of format {FORMAT}.", hint=BUILD_AGAIN)
    try:
        same_key = key_sha256(record["key"]) == record["key_sha256"]
        expected = record["engine"]["sha256"]
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path.name} lacks {error}.", hint=BUILD_AGAIN) from error
    if not same_key:
        raise ArtefactError(f"The key in {path.name} was changed.", hint=BUILD_AGAIN)
    if not engine.is_file() or sha256_of(engine) != expected:
        raise ArtefactError(f"{engine.name} is not the engine that was built.", hint=BUILD_AGAIN)
    return record


def require_fit(record: Mapping[str, Any], version: str, gpu: Gpu, platform: str) -> None:
    """Refuse an engine that was built for something else than what is here.

    Raises:
        ArtefactError: another version, platform or GPU.
        InvalidInput: it has no weights.
    """
    key, options = record["key"], record["key"]["options"]
    if options["strip_weights"] and not key["refitted"]:
        raise InvalidInput(
            "The engine has no weights.", hint="python -m export.trt GRAPH --refit ENGINE"
        )
    differ = []
    if key["version"] != version and not options["version_compatible"]:
        differ.append(f"version {key['version']}, here {version}")
    if key["platform"] != platform:
        differ.append(f"platform {key['platform']}, here {platform}")
    built = key["gpu"]
    if built is not None and options["hardware_compatibility"] != "ampere+":
        names = ("compute_capability",) if options["hardware_compatibility"] != "none" else (
            "name", "compute_capability")  # fmt: skip
        differ += [f"{n} {built[n]}, here {getattr(gpu, n)}" for n in names if built[n] != getattr(gpu, n)]  # fmt: skip
    if differ:
        raise ArtefactError(f"The engine was built for {'; '.join(differ)}.", hint=BUILD_AGAIN)
