"""What `make gpu-check` does, with the graphs in ONNX Runtime on the CPU where a GPU's engines would be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve.commands import run_command
from cat_serve.contract import Output
from cat_serve.errors import InvalidInput
from cat_serve.manifest import Artefact, load_artefact
from export.gpu_check.__main__ import CheckOptions, build_parser, check, find_triton, main, show
from export.gpu_check.machine import Machine
from export.gpu_check.report import markdown
from export.graphs import onnx_engine
from export.triton_server.installation import Installation, find_installation
from export.trt import latency
from export.trt.latency import Latency, batch_sizes
from export.trt.parity import probe_of

MIB = 2**20


class CpuEngine:
    """A graph that is run like an engine; `off` spoils its images, in batches of that size if `at` says one."""

    min_batch, opt_batch, max_batch = 1, 3, 4

    def __init__(self, graph: Path, off: int = 0, at: int | None = None) -> None:
        self._run, self._off, self._at = onnx_engine(graph), off, at

    def __call__(self, batch: Any) -> Output:
        output = self._run(batch)
        spoilt = self._at in (None, len(batch))
        return Output(output.images ^ (self._off if spoilt else 0), output.ok)

    def close(self) -> None:
        CpuMachine.opened -= 1


class CpuMachine:
    """A machine whose engines are the graphs themselves; an open one takes 5 MiB."""

    triton_engine = "python"
    opened = 0

    def __init__(self, **spoilt: Any) -> None:
        self._spoilt = spoilt
        CpuMachine.opened = 0

    def describe(self) -> dict[str, str]:
        return {"GPU": "none | a CPU"}

    def build(self, graph: Path) -> tuple[Path, dict[str, Any]]:
        size_bytes = graph.stat().st_size
        return graph, {
            "cached": False,
            "build_s": 1.5,
            "sha256": "a" * 64,
            "size_bytes": size_bytes,
        }

    def open(self, engine: Path) -> CpuEngine:
        CpuMachine.opened += 1
        return CpuEngine(engine, **self._spoilt)

    def used_bytes(self) -> int:
        return (3 + 5 * CpuMachine.opened) * MIB


@pytest.fixture
def small(small_graph: Path) -> Artefact:
    return load_artefact(small_graph.parent)


# Four classes make twelve rows, which are compared in fours: no batch of three is among them.
OPTIONS = CheckOptions(("fp32",), classes=4, repeats=3, no_triton="it was not asked for")


# --- steps and verdicts ----------------------------------------------------------------------


def test_engine_like_its_graph_passes_with_every_figure(small: Artefact) -> None:
    machine: Machine = CpuMachine()
    report = check(machine, small, OPTIONS)
    assert report["passed"] is True
    assert report["failures"] == []
    (engine,) = report["engines"]
    assert engine["parity"]["difference"]["psnr_db"] is None  # equal
    assert engine["parity"]["batches"].keys() == {"2", "3", "4"}
    assert [timed["batch"] for timed in engine["latency"]] == [1, 2, 4]
    assert all(timed["calls"] == 3 for timed in engine["latency"])
    assert engine["memory_bytes"] == 5 * MIB
    assert CpuMachine.opened == 0
    assert report["model_version"] == small.version


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"off": 2}, "The engine of model.onnx differs too much"),
        ({"off": 3, "at": 3}, "In batches of 3, rows of the engine of model.onnx differ by"),
    ],
)
def test_what_is_beyond_its_budget_fails_and_is_still_reported(
    small: Artefact, spoilt: dict[str, int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(lambda: show(check(CpuMachine(**spoilt), small, OPTIONS), None), "export")
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert code == 1
    assert report["passed"] is False
    assert message in report["failures"][0]
    assert report["engines"][0]["latency"] != []
    assert "**FAILED.**" in out
    assert f"* {report['failures'][0]}" in out


@pytest.mark.slow
def test_every_precision_that_was_asked_for_is_checked(shipped_folder: Path) -> None:
    options = CheckOptions(("fp32", "fp16"), classes=1, repeats=1, no_triton="-")
    report = check(CpuMachine(), load_artefact(shipped_folder), options)
    assert [engine["parity"]["held_to"] for engine in report["engines"]] == ["fp32", "fp16"]
    assert [engine["graph"] for engine in report["engines"]] == ["model.onnx", "model.fp16.onnx"]


# --- the report ------------------------------------------------------------------------------


def test_report_is_markdown_to_paste_then_a_line_of_json(
    small: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.md"
    assert run_command(lambda: show(check(CpuMachine(), small, OPTIONS), out), "export") == 0
    printed = capsys.readouterr().out
    text, _, last = printed.rstrip("\n").rpartition("\n")
    assert text + "\n" == out.read_text()
    assert json.loads(last)["passed"] is True
    assert text.startswith("## GPU check: none | a CPU\n\n**Passed.**")
    assert r"| GPU | none \| a CPU |" in text  # a bar would be another column
    assert "### model.onnx" in text
    assert "| PSNR | equal | at least 60.0 dB |" in text
    assert "Memory: 5 MiB." in text
    assert "Left out: it was not asked for." in text
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table


def test_triton_that_did_not_start_is_reported_with_its_last_words(small: Artefact) -> None:
    report = check(CpuMachine(), small, OPTIONS)
    report["triton_left_out"] = None
    report["triton"] = [{"precision": "fp32", "failures": ["Triton with fp32: it ended."], "log": ["why"]}]  # fmt: skip
    assert "### Triton, fp32\n\nTriton with fp32: it ended. Its last words:\n\n```text\nwhy\n```" in markdown(report)  # fmt: skip


# --- statistics ------------------------------------------------------------------------------


def test_latency_is_of_the_calls_that_count(small_graph: Path) -> None:
    """The clock moves by what each call takes: 9 s while it warms up, then 1, 2, 3 and 10 ms."""
    durations = [1e-3, 2e-3, 3e-3, 10e-3]
    calls: list[int] = []
    now = [0.0]

    def engine(batch: Any) -> Any:
        calls.append(len(batch))
        counted = len(calls) - latency.WARM_UP - 1
        now[0] += 9.0 if counted < 0 else durations[counted]

    batch = probe_of({"num_classes": 5, "z_shape": [64]}, False, 1)
    (timed,) = latency.measure(engine, batch, [8], repeats=4, clock=lambda: now[0])
    assert calls == [8] * (latency.WARM_UP + 4)  # three rows of the probe, repeated
    assert timed == Latency(batch=8, calls=4, median_ms=2.5, p95_ms=8.95, images_per_s=3200.0)
    assert float(np.percentile(np.array(durations) * 1e3, 95)) == pytest.approx(8.95)


@pytest.mark.parametrize(
    ("smallest", "largest", "expected"),
    [(1, 1, (1,)), (1, 8, (1, 2, 4, 8)), (1, 12, (1, 2, 4, 8, 12)), (3, 16, (3, 4, 8, 16))],
)
def test_latency_is_measured_for_powers_of_two_and_the_limits(
    smallest: int, largest: int, expected: tuple[int, ...]
) -> None:
    assert batch_sizes(smallest, largest) == expected


# --- Triton ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_triton_serves_the_engines_and_is_held_to_them(shipped_folder: Path) -> None:
    """The real server, on the CPU: its python engine stands for the plan."""
    options = CheckOptions(("fp32",), classes=2, repeats=2, triton=find_installation())
    report = check(CpuMachine(), load_artefact(shipped_folder), options)
    (served,) = report["triton"]
    assert served["failures"] == [], served.get("log")
    assert served["max_levels"] == 0
    assert [timed["batch"] for timed in served["latency"]] == [1]
    assert served["version"].startswith("2.")
    assert f"### Triton {served['version']}, fp32" in markdown(report)


@pytest.mark.slow
def test_triton_that_makes_other_images_fails(shipped_folder: Path) -> None:
    options = CheckOptions(("fp32",), classes=2, repeats=2, triton=find_installation())
    report = check(CpuMachine(off=1), load_artefact(shipped_folder), options)
    report_of_triton = report["triton"][0]
    assert report_of_triton["failures"] == []  # one level is within the budget of rows
    spoilt = check(CpuMachine(off=4), load_artefact(shipped_folder), options)
    assert "Triton's fp32 images differ from the engine's own by 4 levels" in " ".join(spoilt["failures"])  # fmt: skip


def test_triton_that_does_not_start_fails_the_check(shipped_folder: Path, tmp_path: Path) -> None:
    server = tmp_path / "tritonserver"
    server.write_text("#!/bin/sh\necho no GPU here\nexit 7\n")
    server.chmod(0o755)
    options = CheckOptions(("fp32",), classes=1, repeats=1, triton=Installation(server))
    report = check(CpuMachine(), load_artefact(shipped_folder), options)
    assert report["passed"] is False
    assert report["failures"] == ["Triton with fp32: tritonserver ended with 7; its log says why."]
    assert report["triton"][0]["log"] == ["no GPU here"]


def test_triton_is_left_out_only_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    none, reason = find_triton("tensorrt", None)
    assert none is None
    assert "no tritonserver is on PATH, and --tritonserver was not given" in reason
    server = tmp_path / "tritonserver"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    found, reason = find_triton("tensorrt", None)
    assert (found, reason) == (Installation(server), "")
    assert find_triton("tensorrt-rtx", None)[0] is None
    with pytest.raises(InvalidInput, match="does not run TensorRT-RTX"):
        find_triton("tensorrt-rtx", server)


# --- the command -----------------------------------------------------------------------------


def test_machine_without_a_gpu_is_one_clear_line_and_exit_code_2(
    engine_cache: Path, shipped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--builder", "tensorrt-rtx", "--model", str(shipped_folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("error: There is no NVIDIA GPU here")
    assert len(err.splitlines()) == 2
    assert not engine_cache.exists()


@pytest.mark.parametrize("flags", [["--repeats", "0"], ["--parity-classes", "0"]])
def test_wrong_numbers_are_usage_errors(
    flags: list[str], shipped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(shipped_folder), *flags]) == 2
    assert f"{flags[0]} is 0; it must be at least 1" in capsys.readouterr().err


def test_model_that_ships_is_the_default(project_root: Path) -> None:
    folder = project_root / build_parser().parse_args([]).model
    assert load_artefact(folder).manifest.model == "fashion-32"
