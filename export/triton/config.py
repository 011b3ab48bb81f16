"""Triton configurations, from typed options and a model's manifest to the official protobuf message and its text.

Triton's batch dimension stands before `dims`, and it has no empty `dims` beside one. Tensors of one number a row
are therefore [1] on the wire and reshaped to nothing for the engine, which sees [B] as its graph says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cat_serve import __version__
from cat_serve.contract import BATCH, TensorSpec, Z, inputs, outputs
from cat_serve.errors import InvalidInput
from cat_serve.manifest import GRAPH_NAMES, Artefact
from cat_serve.triton_models.tensors import (
    CHECKPOINT,
    DEFAULT_MODEL,
    FRIENDLY_INPUTS,
    FRIENDLY_MODEL,
    FRIENDLY_OUTPUTS,
    MODELS,
    NUM_CLASSES,
    PACKAGE_VERSION,
    PRECISION,
    THREADS,
    VERSION,
    version_key,
)
from export.triton.options import (
    Batching,
    Engine,
    EngineOptions,
    FriendlyOptions,
    Placement,
    Versions,
)

BACKENDS: dict[Engine, str] = {
    "python": "python",
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
}
DATA_TYPES = {
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}
PYTHON_FILE = "model.py"
PLAN_FILE = "model.plan"
HEADER = "# Written by `python -m export.triton`: change its options, not this file.\n"


def engine_config(artefacts: Mapping[int, Artefact], options: EngineOptions) -> Any:
    """Return the ModelConfig of an engine model, its artefacts given by version number.

    Raises:
        InvalidInput: an option does not go with the model or with another option.
        ArtefactError: the model has no graph of the precision.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    manifest = artefacts[max(artefacts)].manifest
    max_batch = options.batching.largest(min(a.manifest.max_batch for a in artefacts.values()))
    config = pb.ModelConfig(
        name=manifest.model,
        backend=BACKENDS[options.engine],
        max_batch_size=max_batch,
        input=[_input(pb, spec) for spec in inputs(manifest.z_shape)],
        output=[_output(pb, spec) for spec in outputs(manifest.image_size)],
        instance_group=[_instances(pb, options.placement)],
        version_policy=_version_policy(pb, options.versions),
        dynamic_batching=_dynamic_batching(pb, options.batching),
        model_warmup=[
            _warm_up(pb, inputs(manifest.z_shape), size)
            for size in options.warm_up_sizes(max_batch)
        ],
        parameters=_parameters(pb, engine_parameters(artefacts, options)),
    )
    ENGINE_PARTS[options.engine](config, options)
    return config


def friendly_config(options: FriendlyOptions) -> Any:
    """Return the ModelConfig of the model `cat`.

    It has no warm-up: engines are loaded beside it, in no order, and a call before its engine is ready would fail.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    return pb.ModelConfig(
        name=FRIENDLY_MODEL,
        backend=BACKENDS["python"],
        default_model_filename=PYTHON_FILE,
        max_batch_size=options.max_batch,
        input=[_input(pb, spec, optional=True) for spec in FRIENDLY_INPUTS],
        output=[_output(pb, spec) for spec in FRIENDLY_OUTPUTS],
        instance_group=[_instances(pb, Placement(instances=options.instances))],
        version_policy=_version_policy(pb, Versions()),
        dynamic_batching=_dynamic_batching(pb, Batching(queue=options.queue)),
        parameters=_parameters(
            pb,
            {
                DEFAULT_MODEL: options.default_model,
                MODELS: json.dumps(options.versions, sort_keys=True),
                PACKAGE_VERSION: __version__,
            },
        ),
    )


def to_text(config: Any) -> str:
    """Return the content of a config.pbtxt."""
    from google.protobuf import text_format

    return HEADER + text_format.MessageToString(config)


def from_text(text: str) -> Any:
    """Return the ModelConfig that a config.pbtxt holds.

    Raises:
        google.protobuf.text_format.ParseError: it is no such text.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    return text_format.Parse(text, pb.ModelConfig())


def engine_parameters(artefacts: Mapping[int, Artefact], options: EngineOptions) -> dict[str, str]:
    """Return what tells a client which artefact is served, and the python engine what it must find."""
    newest = max(artefacts)
    manifest = artefacts[newest].manifest
    return {
        CHECKPOINT: manifest.source.get("checkpoint_sha256", ""),
        NUM_CLASSES: str(manifest.num_classes),
        VERSION: artefacts[newest].version,
        **{version_key(number): artefact.version for number, artefact in artefacts.items()},
        PRECISION: options.precision,
        PACKAGE_VERSION: __version__,
    }


def _python_part(config: Any, options: EngineOptions) -> None:
    if options.placement.device != "cpu":
        raise InvalidInput(
            "The python engine runs on the CPU.",
            hint="for a GPU: --engine tensorrt_plan or --engine onnxruntime_onnx",
        )
    config.default_model_filename = PYTHON_FILE
    config.parameters[THREADS].string_value = str(options.threads)


def _onnxruntime_part(config: Any, options: EngineOptions) -> None:
    config.platform = "onnxruntime_onnx"
    config.default_model_filename = GRAPH_NAMES[options.precision]
    if options.placement.device == "cpu":
        config.parameters["intra_op_thread_count"].string_value = str(options.threads)
        return
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add()
    accelerator.name = "cuda"
    # float32 means float32: TF32 is a precision of its own
    accelerator.parameters["use_tf32"] = "0"


def _tensorrt_part(config: Any, options: EngineOptions) -> None:
    if options.placement.device != "gpu":
        raise InvalidInput("TensorRT plans run on GPUs.", hint="leave out --device cpu")
    config.platform = "tensorrt_plan"
    if not options.plans:
        config.default_model_filename = PLAN_FILE
    for capability, name in sorted(options.plans.items()):
        config.cc_model_filenames[capability] = name


ENGINE_PARTS = {
    "python": _python_part,
    "onnxruntime_onnx": _onnxruntime_part,
    "tensorrt_plan": _tensorrt_part,
}


def _input(pb: Any, spec: TensorSpec, optional: bool = False) -> Any:
    return pb.ModelInput(
        name=spec.name, data_type=_data_type(pb, spec), optional=optional, **_shape(pb, spec)
    )


def _output(pb: Any, spec: TensorSpec) -> Any:
    return pb.ModelOutput(name=spec.name, data_type=_data_type(pb, spec), **_shape(pb, spec))


def _data_type(pb: Any, spec: TensorSpec) -> int:
    return int(pb.DataType.Value(DATA_TYPES[spec.dtype]))


def _shape(pb: Any, spec: TensorSpec) -> dict[str, Any]:
    """Return `dims`, and `reshape` where a row is one number."""
    batch, *dims = spec.shape
    assert batch == BATCH
    return {"dims": dims} if dims else {"dims": [1], "reshape": pb.ModelTensorReshape()}


def _instances(pb: Any, placement: Placement) -> Any:
    group = pb.ModelInstanceGroup
    kind = group.KIND_GPU if placement.device == "gpu" else group.KIND_CPU
    return group(kind=kind, count=placement.instances, gpus=placement.gpus)


def _version_policy(pb: Any, versions: Versions) -> Any:
    policy = pb.ModelVersionPolicy
    if versions.numbers:
        return policy(specific=policy.Specific(versions=versions.numbers))
    if versions.latest is None:
        return policy(all=policy.All())
    return policy(latest=policy.Latest(num_versions=versions.latest))


def _dynamic_batching(pb: Any, batching: Batching) -> Any:
    queue = batching.queue
    return pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred,
        max_queue_delay_microseconds=batching.delay_us,
        default_queue_policy=pb.ModelQueuePolicy(
            timeout_action=pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=1000 * queue.timeout_ms,
            allow_timeout_override=queue.allow_override,
            max_queue_size=queue.max_size,
        ),
    )


def _warm_up(pb: Any, specs: Sequence[TensorSpec], size: int) -> Any:
    """Return one warm-up batch: random latents, class 0, truncation_psi 0."""
    sample = pb.ModelWarmup
    columns = {}
    for spec in specs:
        dims = spec.shape[1:] or (1,)
        data = {"random_data" if spec.name == Z else "zero_data": True}
        columns[spec.name] = sample.Input(data_type=_data_type(pb, spec), dims=dims, **data)
    return sample(name=f"batch-{size}", batch_size=size, inputs=columns)


def _parameters(pb: Any, values: Mapping[str, str]) -> dict[str, Any]:
    return {name: pb.ModelParameter(string_value=value) for name, value in values.items()}
