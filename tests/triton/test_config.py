"""Configurations as typed options make them, and as their text says again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from cat_serve import __version__
from cat_serve.errors import InvalidInput
from cat_serve.manifest import Artefact
from export.triton.config import engine_config, friendly_config, from_text, to_text
from export.triton.options import (
    Batching,
    EngineOptions,
    FriendlyOptions,
    Placement,
    QueuePolicy,
    Versions,
)

GPU = Placement("gpu")


def of(artefact: Artefact, **options: Any) -> Any:
    return engine_config({1: artefact}, EngineOptions(**options))


def shapes(tensors: Any) -> dict[str, tuple[str, list[int], bool]]:
    """Return dtype, dims and whether a row is reshaped to one number, by name."""
    return {
        tensor.name: (
            pb.DataType.Name(tensor.data_type),
            list(tensor.dims),
            tensor.HasField("reshape") and not tensor.reshape.shape,
        )
        for tensor in tensors
    }


def test_tensors_are_those_of_the_contract(shipped: Artefact) -> None:
    config = of(shipped)
    assert shapes(config.input) == {
        "z": ("TYPE_FP32", [64], False),
        "class_id": ("TYPE_INT64", [1], True),
        "truncation_psi": ("TYPE_FP32", [1], True),
    }
    assert shapes(config.output) == {
        "images": ("TYPE_UINT8", [32, 32, 3], False),
        "ok": ("TYPE_BOOL", [1], True),
    }
    assert config.max_batch_size == shipped.manifest.max_batch


@pytest.mark.parametrize(
    ("options", "platform", "backend", "file"),
    [
        ({}, "", "python", "model.py"),
        ({"engine": "onnxruntime_onnx", "placement": GPU}, "onnxruntime_onnx", "onnxruntime", "model.onnx"),
        ({"engine": "onnxruntime_onnx", "precision": "fp16"}, "onnxruntime_onnx", "onnxruntime", "model.fp16.onnx"),
        ({"engine": "tensorrt_plan", "placement": GPU}, "tensorrt_plan", "tensorrt", "model.plan"),
    ],
)  # fmt: skip
def test_each_engine_has_its_backend_and_file(
    shipped: Artefact, options: dict[str, Any], platform: str, backend: str, file: str
) -> None:
    config = of(shipped, **options)
    assert (config.platform, config.backend) == (platform, backend)
    assert config.default_model_filename == file


def test_plans_are_chosen_by_compute_capability_and_no_other_gpu_is_served(
    shipped: Artefact,
) -> None:
    plans = {"9.0": "h100.plan", "8.9": "l4.plan"}
    config = of(shipped, engine="tensorrt_plan", placement=GPU, plans=plans)
    assert dict(config.cc_model_filenames) == plans
    assert config.default_model_filename == ""


def test_float32_on_a_gpu_is_not_tf32(shipped: Artefact) -> None:
    config = of(shipped, engine="onnxruntime_onnx", placement=GPU)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_instances_stand_where_they_were_put(shipped: Artefact) -> None:
    (group,) = of(
        shipped, engine="tensorrt_plan", placement=Placement("gpu", 2, (0, 3))
    ).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (
        pb.ModelInstanceGroup.KIND_GPU,
        2,
        [0, 3],
    )
    (group,) = of(shipped, placement=Placement(instances=3)).instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_CPU, 3)


def test_batching_and_queue_are_as_asked(shipped: Artefact) -> None:
    queue = QueuePolicy(max_size=7, timeout_ms=250, allow_override=False)
    config = of(shipped, batching=Batching(32, (4, 8), 500, queue))
    batching = config.dynamic_batching
    assert config.max_batch_size == 32
    assert list(batching.preferred_batch_size) == [4, 8]
    assert batching.max_queue_delay_microseconds == 500
    policy = batching.default_queue_policy
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 250_000)
    assert policy.allow_timeout_override is False


def test_warm_up_runs_every_size_with_inputs_of_the_models_shapes(shipped: Artefact) -> None:
    config = of(shipped, warm_up=(3, 1, 64))
    assert [(w.name, w.batch_size) for w in config.model_warmup] == [
        ("batch-1", 1), ("batch-3", 3), ("batch-64", 64),
    ]  # fmt: skip
    for sample in config.model_warmup:
        assert {name: list(i.dims) for name, i in sample.inputs.items()} == {
            "z": [64], "class_id": [1], "truncation_psi": [1],
        }  # fmt: skip
        assert sample.inputs["z"].random_data
        assert sample.inputs["class_id"].zero_data


@pytest.mark.parametrize(
    ("device", "batching", "sizes"),
    [
        ("gpu", Batching(), [1, 2, 4, 8, 16, 32, 64]),
        ("gpu", Batching(24, (12,)), [1, 2, 4, 8, 12, 16, 24]),
        ("cpu", Batching(), [1, 2, 4, 8]),
        ("cpu", Batching(max_batch=2), [1, 2]),
    ],
)
def test_warm_up_by_default(device: Any, batching: Batching, sizes: list[int]) -> None:
    options = EngineOptions(placement=Placement(device), batching=batching)
    assert options.warm_up_sizes(batching.largest(64)) == sizes


def test_no_warm_up_can_be_asked_for(shipped: Artefact) -> None:
    assert not of(shipped, warm_up=()).model_warmup


@pytest.mark.parametrize(
    ("versions", "field", "served"),
    [
        (Versions(), "latest", [3]),
        (Versions(latest=2), "latest", [2, 3]),
        (Versions(latest=None), "all", [1, 2, 3]),
        (Versions(latest=None, numbers=(1, 3)), "specific", [1, 3]),
    ],
)
def test_version_policy_and_the_folders_it_serves_agree(
    shipped: Artefact, versions: Versions, field: str, served: list[int]
) -> None:
    assert versions.choose([3, 1, 2]) == served
    config = of(shipped, versions=versions)
    assert config.version_policy.WhichOneof("policy_choice") == field
    if field == "specific":
        assert list(config.version_policy.specific.versions) == served


def test_a_version_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no version 4") as refused:
        Versions(latest=None, numbers=(1, 4)).choose([1, 2])
    assert refused.value.hint == "versions there: 1, 2"


def test_parameters_name_the_artefact_of_every_version(shipped: Artefact) -> None:
    older = replace(shipped, version="0123456789ab")
    config = engine_config({1: older, 2: shipped}, EngineOptions(precision="fp16", threads=3))
    assert {name: each.string_value for name, each in config.parameters.items()} == {
        "checkpoint_sha256": shipped.manifest.source["checkpoint_sha256"],
        "num_classes": "10",
        "version": shipped.version,
        "version_1": "0123456789ab",
        "version_2": shipped.version,
        "precision": "fp16",
        "package_version": __version__,
        "threads": "3",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"placement": GPU}, "python engine runs on the CPU"),
        ({"engine": "tensorrt_plan"}, "plans run on GPUs"),
        ({"batching": Batching(max_batch=65)}, "more than the 64 rows"),
        ({"batching": Batching(max_batch=8, preferred=(9,))}, "--preferred-batch 9 is outside 1 to 8"),
        ({"warm_up": (0, 1)}, "--warm-up 0 is outside"),
        ({"batching": Batching(max_batch=8), "warm_up": (9,)}, "--warm-up 9 is outside 1 to 8"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    shipped: Artefact, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        of(shipped, **options)
    assert refused.value.hint


def test_every_input_of_the_friendly_model_may_be_left_out() -> None:
    config = friendly_config(FriendlyOptions("fashion-32", {"fashion-32": 1}, 64))
    assert {each.name: each.optional for each in config.input} == dict.fromkeys(
        ("class", "class_id", "seed", "truncation_psi", "model", "format"), True
    )
    assert shapes(config.output) == {
        "image": ("TYPE_UINT8", [-1, -1, 3], False),
        "encoded": ("TYPE_STRING", [1], True),
        "seed": ("TYPE_INT64", [1], True),
        "class_id": ("TYPE_INT64", [1], True),
    }


def test_text_is_read_back_as_the_same_message(shipped: Artefact) -> None:
    placed = {"engine": "tensorrt_plan", "placement": Placement("gpu", 2, (0,))}
    for config in (
        of(shipped),
        of(shipped, **placed, plans={"8.9": "l4.plan"}, batching=Batching(8, (4,), 100)),
        friendly_config(FriendlyOptions("fashion-32", {"fashion-32": 1}, 64)),
    ):
        assert from_text(to_text(config)) == config


def test_committed_configurations_are_read_by_the_official_message(project_root: Path) -> None:
    for path in (project_root / "model_repository").glob("*/config.pbtxt"):
        assert from_text(path.read_text()).name == path.parent.name
