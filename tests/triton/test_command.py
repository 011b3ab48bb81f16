"""`python -m export.triton`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cat_serve.files import sha256_of
from cat_serve.manifest import load_artefact
from cat_serve.repository import load_models
from export.triton.__main__ import main
from export.triton.config import from_text
from export.trt.device import Gpu
from export.trt.options import BuildOptions, Profile
from export.trt.record import FORMAT, GraphFacts, engine_key, key_sha256, write_record


@pytest.fixture
def repository(project_root: Path, tmp_path: Path) -> Path:
    """The shipped artefact as `export.onnx` leaves it."""
    names = shutil.ignore_patterns("config.pbtxt", "model.py", "__pycache__")
    source = project_root / "model_repository" / "fashion-32"
    shutil.copytree(source, tmp_path / "models" / "fashion-32", ignore=names)
    return tmp_path / "models"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, its report and what it said on stderr."""
    code = main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def config_of(repository: Path, model: str) -> Any:
    return from_text((repository / model / "config.pbtxt").read_text())


def files(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip


def test_the_committed_repository_is_what_the_command_writes(
    project_root: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, repository)[0] == 0
    committed = files(project_root / "model_repository")
    written = files(repository)
    names = {
        name
        for name in committed
        if name.endswith(("config.pbtxt", "model.py")) or name.startswith("cat/")
    }
    assert len(names) == 5
    assert {name: committed[name] for name in names} == {name: written[name] for name in names}
    assert run(capsys, project_root / "model_repository", "--check")[0] == 0


def test_a_second_run_changes_nothing_and_check_says_so(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, said = run(capsys, repository)
    assert (code, report["changed"]) == (0, 5)
    assert said.count("written") == 5
    assert run(capsys, repository)[1]["changed"] == 0
    assert run(capsys, repository, "--check")[0] == 0


def test_check_finds_a_file_that_differs_and_leaves_it(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, repository)
    path = repository / "fashion-32" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 64", "max_batch_size: 63"))
    code, report, said = run(capsys, repository, "--check")
    assert (code, report["passed"], report["changed"]) == (1, False, 1)
    assert f"differs  {path}" in said
    assert "63" in path.read_text()


def test_a_model_that_is_gone_is_gone_from_the_friendly_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository / "other" / "1"
    shutil.copytree(repository / "fashion-32" / "1", folder)
    text = (folder / "manifest.json").read_text().replace('"fashion-32"', '"other"', 1)
    (folder / "manifest.json").write_text(text)
    run(capsys, repository)
    copy = repository / "cat" / "1" / "other.json"
    assert copy.read_text() == text
    shutil.rmtree(folder.parent)
    assert run(capsys, repository, "--check")[0] == 1
    run(capsys, repository)
    assert not copy.exists()


def test_the_models_version_stays_and_the_service_reads_the_same_repository(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_artefact(repository / "fashion-32" / "1").version
    run(capsys, repository)
    models = load_models(repository)
    assert {name: artefact.version for name, artefact in models.items()} == {"fashion-32": before}


def test_another_engine_takes_its_own_model_py_away_and_no_other_file(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, repository)
    code, _, said = run(capsys, repository, "--engine", "onnxruntime_onnx", "--without-cat")
    assert code == 0
    assert said.count("removed") == 4
    assert not (repository / "cat").exists()
    assert config_of(repository, "fashion-32").backend == "onnxruntime"
    own = repository / "fashion-32" / "1" / "model.py"
    own.write_text("# somebody's own\n")
    run(capsys, repository, "--engine", "onnxruntime_onnx", "--without-cat")
    assert own.read_text() == "# somebody's own\n"


def test_every_flag_reaches_the_configuration(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, _ = run(
        capsys, repository, "--engine", "onnxruntime_onnx", "--precision", "fp16", "--gpus", 0, 2,
        "--instances", 3, "--max-batch", 32, "--preferred-batch", 8, 16, "--queue-delay-us", 200,
        "--max-queue-size", 9, "--queue-timeout-ms", 40, "--no-timeout-override", "--warm-up", 0,
        "--versions", "latest:2", "--cat-instances", 4,
    )  # fmt: skip
    assert (code, report["precision"]) == (0, "fp16")
    config, cat = config_of(repository, "fashion-32"), config_of(repository, "cat")
    assert config.default_model_filename == "model.fp16.onnx"
    assert config.parameters["precision"].string_value == "fp16"
    assert (config.instance_group[0].count, list(config.instance_group[0].gpus)) == (3, [0, 2])
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    for policy in (each.dynamic_batching.default_queue_policy for each in (config, cat)):
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 40_000)
        assert not policy.allow_timeout_override
    assert not config.model_warmup
    assert config.version_policy.latest.num_versions == 2
    assert cat.instance_group[0].count == 4
    assert json.loads(cat.parameters["models"].string_value) == {"fashion-32": 1}


def add_version(repository: Path, number: int, **changes: Any) -> str:
    """Copy version 1 with another manifest; return the version that is its name."""
    folder = repository / "fashion-32" / str(number)
    shutil.copytree(repository / "fashion-32" / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_artefact(folder).version


def test_several_versions_are_named_one_by_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = add_version(repository, 2, source={"note": "another"})
    first = load_artefact(repository / "fashion-32" / "1").version
    run(capsys, repository, "--versions", "all")
    values = {k: v.string_value for k, v in config_of(repository, "fashion-32").parameters.items()}
    assert (values["version"], values["version_1"], values["version_2"]) == (second, first, second)
    assert all((repository / "fashion-32" / n / "model.py").is_file() for n in ("1", "2"))
    run(capsys, repository, "--versions", "1")
    assert config_of(repository, "fashion-32").parameters["version"].string_value == first
    cat = config_of(repository, "cat")
    assert json.loads(cat.parameters["models"].string_value) == {"fashion-32": 1}


def test_versions_of_different_shapes_are_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(repository, 2, z_shape=[32])
    code, _, said = run(capsys, repository, "--versions", "all")
    assert code == 1
    assert "different shapes" in said


# --- TensorRT --------------------------------------------------------------------------------


def add_plan(repository: Path, name: str, capability: str = "8.9", **changes: Any) -> None:
    """Write what stands for a plan, with the record that `export.trt` would write beside it."""
    plan = repository / "fashion-32" / "1" / name
    plan.write_bytes(b"plan")
    graph = plan.with_name("model.onnx")
    options = BuildOptions(profile=Profile(1, 8, 64), **changes)
    facts = GraphFacts(sha256_of(graph), {}, "fp32")
    key = engine_key(facts, options, "10.16.1.11", Gpu("L4", capability, 0, "13.0"), "linux-x86_64")
    engine = {"sha256": sha256_of(plan), "size_bytes": 4}
    record = {"format": FORMAT, "key": key, "key_sha256": key_sha256(key), "engine": engine}
    write_record(plan, record)


def test_plans_are_written_by_compute_capability(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_plan(repository, "l4.plan")
    add_plan(repository, "h100.plan", "9.0")
    plans = ["--plan", "8.9=l4.plan", "9.0=h100.plan"]
    code, _, said = run(capsys, repository, "--engine", "tensorrt_plan", *plans)
    assert code == 0, said
    config = config_of(repository, "fashion-32")
    assert dict(config.cc_model_filenames) == {"8.9": "l4.plan", "9.0": "h100.plan"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"builder": "tensorrt-rtx"}, "of tensorrt-rtx, which Triton does not run"),
        ({"strip_weights": True}, "has no weights"),
        ({"capability": "8.0"}, "was built for compute capability 8.0, not 8.9"),
    ],
)
def test_a_plan_that_triton_could_not_serve_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    add_plan(repository, "l4.plan", **changes)
    code, _, shown = run(capsys, repository, "--engine", "tensorrt_plan", "--plan", "8.9=l4.plan")
    assert code == 1
    assert said in shown
    assert "on a GPU of compute capability 8.9: python -m export.trt" in shown


def test_a_plan_for_several_gpus_is_taken_for_another(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_plan(repository, "model.plan", "8.0", hardware_compatibility="ampere+")
    assert run(capsys, repository, "--engine", "tensorrt_plan", "--plan", "8.9=model.plan")[0] == 0


def test_a_plan_of_another_graph_or_for_smaller_batches_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_plan(repository, "model.plan")
    code, _, said = run(capsys, repository, "--engine", "tensorrt_plan", "--precision", "fp16")
    assert (code, "not built from this model.fp16.onnx" in said) == (1, True)
    record = repository / "fashion-32" / "1" / "model.plan.json"
    values = json.loads(record.read_text())
    values["key"]["options"]["profile"]["max_batch"] = 32
    values["key_sha256"] = key_sha256(values["key"])
    record.write_text(json.dumps(values))
    code, _, said = run(capsys, repository, "--engine", "tensorrt_plan")
    assert (code, "takes 32 rows at most, not 64" in said) == (1, True)
    assert run(capsys, repository, "--engine", "tensorrt_plan", "--max-batch", "32")[0] == 0


def test_a_plan_without_its_record_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "fashion-32" / "1" / "model.plan").write_bytes(b"plan")
    code, _, said = run(capsys, repository, "--engine", "tensorrt_plan")
    assert (code, "has no record model.plan.json" in said) == (1, True)


def test_a_plan_that_is_not_there_is_refused_with_how_to_build_it(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, repository, "--engine", "tensorrt_plan", "--precision", "fp16")
    assert code == 1
    assert "There is no plan" in said
    assert "python -m export.trt" in said
    assert "model.fp16.onnx" in said
    assert not (repository / "fashion-32" / "config.pbtxt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "other"], "no model other"),
        (["--default-model", "other"], "no model 'other'"),
        (["--plan", "8.9=l4.plan"], "--plan is for TensorRT"),
        (["--gpus", "0"], "--gpus needs an engine on GPUs"),
        (["--device", "gpu"], "python engine runs on the CPU"),
        (["--versions", "newest"], "--versions newest cannot be read"),
        (["--versions", "7"], "no version 7"),
        (["--engine", "tensorrt_plan", "--plan", "l4.plan"], "--plan l4.plan cannot be read"),
        (["--engine", "tensorrt_plan", "--plan", "8.9=../l4.plan"], "cannot be read"),
        (["--max-batch", "65"], "more than the 64 rows"),
    ],
)
def test_wrong_arguments_are_usage_errors_with_a_hint_and_write_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    before = files(repository)
    code, report, shown = run(capsys, repository, *arguments)
    assert (code, report) == (2, {})
    assert said in shown
    assert "\n  hint: " in shown
    assert files(repository) == before


def test_a_folder_without_models_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, tmp_path / "nowhere")[0] == 2
    code, _, said = run(capsys, tmp_path)
    assert code == 1
    assert "holds no model" in said


def test_a_precision_that_was_not_exported_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = repository / "fashion-32" / "1" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["files"]["model.fp16.onnx"]
    manifest.write_text(json.dumps(values))
    code, _, said = run(capsys, repository, "--precision", "fp16")
    assert code == 1
    assert "has no model.fp16.onnx" in said


def test_the_default_of_several_models_must_be_named(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        folder = repository / name / "1"
        shutil.copytree(repository / "fashion-32" / "1", folder)
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"fashion-32"', f'"{name}"', 1))
    shutil.rmtree(repository / "fashion-32")
    code, _, said = run(capsys, repository)
    assert code == 2
    assert "give --default-model, one of: one, two" in said
    assert run(capsys, repository, "--default-model", "two")[0] == 0
    assert config_of(repository, "cat").parameters["default_model"].string_value == "two"
