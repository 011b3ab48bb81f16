"""Engines and Triton servers as forms of a model: what they say of themselves, and how they are held to the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve.contract import Output
from cat_serve.errors import ArtefactError, InvalidInput
from cat_serve.manifest import load_artefact
from export import verify
from export.forms import open_form
from export.forms.base import Identity, require_same_model
from export.forms.triton import identity_of
from export.graphs import onnx_engine
from export.triton_server.server import Ports, TritonServer
from export.trt import __main__ as trt
from export.trt import runner as trt_runner
from export.trt.record import read_record, write_record

QUICK = ["--parity-classes", "2", "--max-batch", "4"]

Captured = pytest.CaptureFixture[str]


def compare(captured: Captured, *names: object) -> tuple[int, Any, str]:
    """Run the command; return its exit code, its report and what it told people."""
    code = verify.main([*map(str, names), *QUICK])
    printed = captured.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]) if printed.out else None, printed.err


# --- Triton --------------------------------------------------------------------------------------


def test_triton_serves_the_bytes_of_the_export(
    triton_server: TritonServer, shipped_folder: Path, capsys: Captured
) -> None:
    name = f"grpc://{triton_server.grpc_url}/fashion-32"
    code, report, said = compare(capsys, name, shipped_folder)
    assert (code, report["passed"], report["held_to"]) == (0, True, "fp32")
    assert report["difference"]["psnr_db"] is None  # equal
    form = report["forms"][0]
    assert (form["determinism"], form["rows_budget_levels"]) == ("bytes", 0)
    assert form["engine"].startswith("Triton 2.")
    assert form["batches"].keys() == {"2", "3", "4"}
    assert "python" in said


def test_triton_s_configuration_says_what_it_serves(
    triton_server: TritonServer, shipped_folder: Path
) -> None:
    form = open_form(f"grpc://{triton_server.grpc_url}/fashion-32")
    manifest = load_artefact(shipped_folder).manifest
    assert form.identity == Identity(
        manifest.source["checkpoint_sha256"], 10, None, manifest.z_shape, manifest.image_size
    )
    require_same_model(form, open_form(str(shipped_folder)))
    assert (form.precision, form.max_batch) == ("fp32", 64)


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/nobody", 1, "does not serve nobody"),
        ("/cat", 1, "does not say what it serves"),
        ("", 2, "names no model"),
        ("/a/b", 2, "names no model"),
    ],
)
def test_what_is_no_engine_model_is_explained(
    triton_server: TritonServer, shipped_folder: Path, capsys: Captured, path: str, code: int, said: str
) -> None:  # fmt: skip
    name = f"grpc://{triton_server.grpc_url}{path}"
    got, report, told = compare(capsys, shipped_folder, name)
    assert (got, report) == (code, None)
    assert said in told


def test_server_that_is_not_there_is_explained(shipped_folder: Path, capsys: Captured) -> None:
    name = f"grpc://127.0.0.1:{Ports.free().grpc}/fashion-32"
    code, report, said = compare(capsys, shipped_folder, name)
    assert (code, report) == (1, None)
    assert "does not serve fashion-32" in said


def test_configuration_of_somebody_else_is_refused() -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    with pytest.raises(ArtefactError, match=r"export\.triton"):
        identity_of("theirs", pb.ModelConfig(name="theirs", max_batch_size=4))


# --- TensorRT ------------------------------------------------------------------------------------


class OnCpu:
    """What an opened engine looks like, computed by its graph in ONNX Runtime; `off` spoils its images."""

    min_batch, opt_batch, max_batch = 1, 3, 5

    def __init__(self, graph: Path, off: int = 0) -> None:
        self._run, self._off = onnx_engine(graph), off

    def __call__(self, batch: Any) -> Output:
        output = self._run(batch)
        return Output(output.images ^ np.uint8(self._off), output.ok)


@pytest.fixture
def engine(small_graph: Path, engine_cache: Path, tmp_path: Path, capsys: Captured) -> Path:
    """An engine that TensorRT-RTX built of the small graph."""
    out = tmp_path / "small.rtx"
    command = [str(small_graph), "--builder", "tensorrt-rtx", "--compute-capability", "89"]
    command += ["--min-batch", "1", "--opt-batch", "3", "--max-batch", "5", "--out", str(out)]
    assert trt.main(command) == 0
    capsys.readouterr()
    return out


def test_engine_needs_a_gpu(engine: Path, small_graph: Path, capsys: Captured) -> None:
    code, report, said = compare(capsys, small_graph.parent, engine)
    assert (code, report) == (2, None)
    assert "GPU" in said


@pytest.mark.parametrize(("off", "code"), [(0, 0), (4, 1)])
def test_engine_is_held_to_its_export(
    engine: Path, small_graph: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, off: int, code: int
) -> None:  # fmt: skip
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: OnCpu(small_graph, off))
    got, report, _ = compare(capsys, small_graph.parent, engine)
    assert (got, report["passed"]) == (code, code == 0)
    form = report["forms"][1]
    assert (form["precision"], form["determinism"]) == ("fp32", "latent")
    assert form["engine"].startswith("tensorrt-rtx 1.")
    assert form["batches"].keys() == {"2", "3", "4"}


def test_batch_that_an_engine_was_tuned_for_is_compared(
    engine: Path, small_graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("export.probes.INVARIANCE_SIZES", (2,))
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: OnCpu(small_graph))
    _, report, _ = compare(capsys, small_graph.parent, engine)
    assert [list(form["batches"]) for form in report["forms"]] == [["2", "3", "4"]] * 2


def change(engine: Path, do: Callable[[dict[str, Any]], object]) -> None:
    record = read_record(engine)
    do(record)
    write_record(engine, record)


def test_engine_of_an_unknown_model_is_refused(engine: Path) -> None:
    change(engine, lambda record: record["source"].update(model=None))
    with pytest.raises(InvalidInput, match="Nothing is known of the model"):
        open_form(str(engine))


def test_engine_of_other_weights_does_not_belong(
    engine: Path, small_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: OnCpu(small_graph))
    change(engine, lambda record: record["source"].update(checkpoint_sha256="0" * 64))
    with pytest.raises(InvalidInput, match="checkpoint sha256"):
        require_same_model(open_form(str(engine)), open_form(str(small_graph)))
