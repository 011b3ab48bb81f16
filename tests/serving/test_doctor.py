"""The doctor finds what is broken or lacking, says what to do, and its exit code says which it was."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from cat_serve.cli import main
from cat_serve.doctor import artefacts, environment
from cat_serve.doctor.finding import Finding, Verdict, as_table, exit_code
from cat_serve.manifest import MANIFEST_NAME, Artefact, record
from cat_serve.settings import Settings
from cat_serve.web.server import bind
from tests.serving.test_server import free_port
from tests.serving.test_triton_endpoints import StandIn

Examine = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CAT_SERVE_{name.upper()}", raising=False)
    monkeypatch.setenv("CAT_SERVE_ENGINE_CACHE", str(tmp_path / "no-engines"))
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the command; return its exit code, and the worst finding of each subject."""

    def run(*flags: str) -> tuple[int, dict[str, dict[str, Any]]]:
        code = main(["doctor", "--port", "0", *flags])
        *table, last = capsys.readouterr().out.splitlines()
        report = json.loads(last)
        assert report["passed"] is (code == 0)
        for finding in report["findings"]:
            assert any(finding["detail"].splitlines()[0] in line for line in table)
            assert finding["advice"] or finding["verdict"] in ("ok", "none")
        worst = sorted(report["findings"], key=lambda f: list(Verdict).index(f["verdict"]))
        return code, {finding["subject"]: finding for finding in worst}

    return run


@pytest.fixture
def copy(shipped: Artefact, tmp_path: Path) -> Path:
    """Return the version folder of a copy of the shipped model, in a repository of its own."""
    folder = tmp_path / "shipped" / "fashion-32" / "1"
    folder.mkdir(parents=True)
    for name in (MANIFEST_NAME, *shipped.manifest.files):
        shutil.copy(shipped.folder / name, folder / name)
    return folder


def test_shipped_model_is_whole_and_really_runs(examine: Examine, shipped: Artefact) -> None:
    code, found = examine("--threads", "1", "--concurrency", "1")
    assert code == 0
    assert shipped.version in found["fashion-32"]["detail"] or found["fashion-32"]["area"] == "checkpoint"  # fmt: skip
    for precision in ("fp32", "fp16"):
        made = found[f"fashion-32 on onnxruntime cpu {precision}"]
        assert (made["verdict"], made["area"]) == ("ok", "engine")
        assert "golden images" in made["detail"]
    assert found["onnxruntime"]["verdict"] == "ok"


def test_changed_graph_breaks_the_chain(examine: Examine, copy: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    data[-1] ^= 1
    (copy / "model.onnx").write_bytes(data)
    code, found = examine("--model-repository", str(copy.parent.parent))
    assert (code, found["fashion-32"]["verdict"]) == (1, "failed")
    assert "model.onnx" in found["fashion-32"]["detail"]
    assert "restore the file" in found["fashion-32"]["advice"]


def test_engine_that_makes_other_images_is_found(examine: Examine, copy: Path) -> None:
    golden = copy / "golden.png"
    Image.open(golden).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(golden)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    written = record(golden)
    manifest["files"]["golden.png"] |= {"sha256": written.sha256, "size_bytes": written.size_bytes}
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    code, found = examine("--model-repository", str(copy.parent.parent))
    made = found["fashion-32 on onnxruntime cpu fp32"]
    assert (code, made["verdict"]) == (1, "failed")
    assert "does not make its golden images" in made["detail"]


def test_other_checkpoint_is_found_and_the_right_one_is_known(
    examine: Examine, copy: Path, project_root: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "weights"
    checkpoints.mkdir()
    arguments = ("--model-repository", str(copy.parent.parent), "--checkpoints", str(checkpoints))
    code, found = examine(*arguments)
    assert code == 0
    checkpoint = checkpoints / "fashion-32.safetensors"
    shutil.copy(project_root / "checkpoints" / checkpoint.name, checkpoint)
    code, found = examine(*arguments)
    assert (code, found["fashion-32"]["verdict"]) == (0, "ok")
    checkpoint.write_bytes(b"other weights")
    code, found = examine(*arguments)
    assert (code, found["fashion-32"]["area"]) == (1, "checkpoint")
    assert hashlib.sha256(b"other weights").hexdigest()[:12] in found["fashion-32"]["detail"]
    assert "export.onnx" in found["fashion-32"]["advice"]


def test_provider_that_was_asked_for_and_is_lacking_is_2(examine: Examine, copy: Path) -> None:
    code, found = examine("--provider", "cuda", "--model-repository", str(copy.parent.parent))
    lacking = found["fashion-32 on onnxruntime cuda fp32"]
    assert (code, lacking["verdict"]) == (2, "lacks")
    assert "cat-serve[gpu]" in lacking["advice"]
    assert found["fashion-32 on onnxruntime tensorrt fp32"]["verdict"] == "none"


def test_precision_that_the_model_lacks_is_found(
    examine: Examine, add_model: Any, repository: Path
) -> None:
    add_model()
    code, found = examine("--model-repository", str(repository), "--precision", "fp16")
    assert code == 1
    assert "model.fp16.onnx" in found["toy on onnxruntime cpu fp16"]["detail"]


def test_port_that_is_taken_is_lacking(examine: Examine) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        code, found = examine("--admin-port", port)
    assert (code, found["admin port"]["verdict"]) == (2, "lacks")
    assert "--admin-port" in found["admin port"]["advice"]


def test_port_that_is_wanted_twice_is_lacking(examine: Examine) -> None:
    port = str(free_port())
    code, found = examine("--port", port, "--admin-port", port)
    assert (code, found["port"]["verdict"], found["admin port"]["verdict"]) == (2, "ok", "lacks")


def test_studio_is_opened_and_proved(
    examine: Examine, copy: Path, add_model: Any, repository: Path
) -> None:
    flags = ("--model-repository", str(copy.parent.parent))
    code, found = examine(*flags)
    assert (code, found["fashion-32 studio"]["verdict"]) == (0, "ok")
    shutil.copy(copy / "model.fp16.onnx", copy / "studio.onnx")  # a graph, and not the studio's
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    written = record(copy / "studio.onnx")
    manifest["files"]["studio.onnx"] |= {"sha256": written.sha256, "size_bytes": written.size_bytes}
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    code, found = examine(*flags)
    assert (code, found["fashion-32 studio"]["verdict"]) == (1, "failed")
    assert found["fashion-32 on onnxruntime cpu fp32"]["verdict"] == "ok"


def test_model_without_a_studio_lacks_nothing(
    examine: Examine, add_model: Any, repository: Path
) -> None:
    add_model()
    _, found = examine("--model-repository", str(repository))
    assert found["toy studio"]["verdict"] == "none"


def test_variable_that_sets_nothing_is_told(
    examine: Examine, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAT_SERVE_MAX_BATHC", "8")
    monkeypatch.setenv("CAT_SERVE_SERVICE_HOST", "10.0.0.1")  # as Kubernetes does
    monkeypatch.setenv("CAT_SERVE_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    code, found = examine("--model-repository", str(copy.parent.parent))
    told = [subject for subject, finding in found.items() if finding["verdict"] == "warning"]
    assert (code, told) == (0, ["CAT_SERVE_MAX_BATHC"])
    assert "CAT_SERVE_MAX_BATCH" in found["CAT_SERVE_MAX_BATHC"]["advice"]


def test_repository_that_is_not_there_fails(examine: Examine, tmp_path: Path) -> None:
    code, found = examine("--model-repository", str(tmp_path / "none"))
    assert (code, found["repository"]["verdict"]) == (1, "failed")


def test_keys_are_named_and_their_file_is_kept_from_others(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = examine("--host", "0.0.0.0")
    assert (code, found["API keys"]["verdict"]) == (0, "warning")
    file = tmp_path / "keys.toml"
    file.write_text('bob = "bobs-own-secret-key"')
    file.chmod(0o644)
    code, found = examine("--host", "0.0.0.0", "--api-keys-file", str(file))
    assert (code, found["API keys"]["verdict"]) == (0, "warning")
    assert "chmod" in found["API keys"]["advice"]
    file.chmod(0o600)
    code, found = examine("--api-keys-file", str(file))
    assert (found["API keys"]["verdict"], found["API keys"]["detail"]) == ("ok", "keys of bob")
    for content in ("", None):
        file.write_text(content) if content is not None else file.unlink()
        code, found = examine("--api-keys-file", str(file))
        assert (code, found["API keys"]["verdict"]) == (2, "lacks")
    assert str(file) in found["API keys"]["detail"]
    assert "--api-keys-file" in found["API keys"]["advice"]


def engine_with_record(folder: Path, artefact: Artefact, **changes: Any) -> Path:
    engine = folder / "model.plan"
    engine.write_bytes(b"an engine")
    values = {
        "engine": {"sha256": hashlib.sha256(b"an engine").hexdigest()},
        "key": {"graph": {"sha256": artefact.manifest.files["golden.png"].sha256}},
        "source": {"checkpoint_sha256": artefact.manifest.source.get("checkpoint_sha256")},
    }
    (folder / "model.plan.json").write_text(json.dumps(values | changes))
    return engine


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"engine": {"sha256": "0" * 64}}, "not the file that its record describes"),
        ({"key": {"graph": {"sha256": "0" * 64}}}, "not built from a graph of this version"),
        ({"source": {"checkpoint_sha256": "0" * 64}}, "another checkpoint"),
        ({"key": None}, "missing or damaged"),
    ],
)
def test_engine_is_held_to_its_record_graph_and_checkpoint(
    add_model: Any, repository: Path, examine: Examine, changes: Any, told: str | None
) -> None:
    artefact = add_model(source={"checkpoint_sha256": "a" * 64})
    engine_with_record(artefact.folder, artefact, **changes)
    _, found = examine("--model-repository", str(repository))
    seen = found["toy/model.plan"]
    if told is None:
        assert seen["verdict"] == "ok"
    else:
        assert seen["verdict"] == "failed"
        assert told in seen["detail"]
        assert "export.trt" in seen["advice"]


def test_engines_of_the_cache_are_held_to_their_records(add_model: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    environ = {"CAT_SERVE_ENGINE_CACHE": str(cache)}
    engine = engine_with_record(cache, add_model())
    assert [f.verdict for f in artefacts.cached_engines(environ)] == [Verdict.OK]
    engine.write_bytes(b"damaged")
    assert [f.verdict for f in artefacts.cached_engines(environ)] == [Verdict.FAILED]


@pytest.mark.anyio
async def test_triton_servers_have_to_prove_themselves(
    examine: Examine, add_model: Any, repository: Path
) -> None:
    artefact = add_model()
    server, stand_in = grpc.aio.server(), StandIn(artefact)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    good = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    dead = f"127.0.0.1:{free_port()}"
    await server.start()
    flags = ("--backend", "triton", "--model-repository", str(repository))
    try:
        code, found = await asyncio.to_thread(examine, *flags, "--triton-url", good)
        assert (code, found[f"toy at {good}"]["verdict"]) == (0, "ok")
        stand_in.config = stand_in.config.replace(artefact.version, "0" * 12)
        code, found = await asyncio.to_thread(examine, *flags, "--triton-url", good, "--triton-url", dead)  # fmt: skip
    finally:
        await server.stop(None)
    assert code == 1
    assert "serves version 000000000000" in found[f"toy at {good}"]["detail"]
    assert "same model repository" in found[f"toy at {good}"]["advice"]
    assert "UNAVAILABLE" in found[f"toy at {dead}"]["detail"]


def packages(monkeypatch: pytest.MonkeyPatch, *there: str) -> dict[str, Finding]:
    monkeypatch.setattr(environment, "_version", lambda name: "1" if name in there else None)
    return {finding.subject: finding for finding in environment.look(Settings(port=0), {})}


def test_two_onnxruntimes_break_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    assert found["onnxruntime"].verdict is Verdict.FAILED
    assert "uninstall" in (found["onnxruntime"].advice or "")
    assert packages(monkeypatch, "onnxruntime-gpu")["onnxruntime-gpu"].verdict is Verdict.OK


def test_backend_that_is_not_installed_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages(monkeypatch, "torch")["onnxruntime"]
    assert (found.verdict, found.advice) == (Verdict.LACKS, "pip install 'cat-serve[cpu]'")


def traces(environ: dict[str, str]) -> Finding:
    return {f.subject: f for f in environment.look(Settings(port=0), environ)}["traces"]


def test_traces_are_off_sent_or_lost() -> None:
    assert traces({}).verdict is Verdict.NONE
    assert traces({"OTEL_TRACES_EXPORTER": "console"}).verdict is Verdict.OK
    with bind("127.0.0.1", 0) as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.getsockname()[1]}"}
        assert traces(environ).verdict is Verdict.OK
    lost = traces(environ)
    assert lost.verdict is Verdict.WARNING
    assert "127.0.0.1" in lost.detail


@pytest.mark.parametrize(
    ("environ", "advised"),
    [
        ({"OTEL_TRACES_EXPORTER": "smoke"}, "otlp, console, none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:secret@host:port"}, "http://host:4318"),
    ],
)
def test_traces_that_nothing_can_send_are_lacking(environ: dict[str, str], advised: str) -> None:
    found = traces({"OTEL_TRACES_EXPORTER": "otlp"} | environ)
    assert found.verdict is Verdict.LACKS
    assert advised in (found.advice or "")
    assert "secret" not in found.detail


def test_memory_is_that_of_the_container_if_it_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert environment.available_bytes(meminfo, tmp_path) == 2048 * 1024
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert environment.available_bytes(meminfo, tmp_path) == 48576
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.available_bytes(meminfo, tmp_path) == 2048 * 1024
    assert environment.available_bytes(tmp_path / "none", tmp_path / "none") is None


def test_more_threads_than_cores_is_a_warning() -> None:
    found = {f.subject: f for f in environment.look(Settings(port=0, threads=4096), {})}
    assert found["cores"].verdict is Verdict.WARNING


def test_broken_outweighs_lacking_in_the_exit_code() -> None:
    def code(*verdicts: Verdict) -> int:
        return exit_code([Finding("a", "b", verdict, "c") for verdict in verdicts])

    assert code(Verdict.OK, Verdict.NONE, Verdict.WARNING) == 0
    assert code(Verdict.LACKS, Verdict.OK) == 2
    assert code(Verdict.LACKS, Verdict.FAILED) == 1


def test_table_has_columns_and_advice_below() -> None:
    table = as_table([Finding("a", "one", Verdict.OK, "fine"),
                      Finding("area", "b", Verdict.FAILED, "bad", "repair it")])  # fmt: skip
    assert table.splitlines() == [
        "ok      a     one  fine", "failed  area  b    bad", "        -> repair it"
    ]  # fmt: skip
