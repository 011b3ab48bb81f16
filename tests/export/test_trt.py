"""The command that builds engines: real ones by TensorRT-RTX, which needs no GPU, and what is refused everywhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from cat_serve.errors import ArtefactError, ParityError
from cat_serve.files import sha256_of
from export.trt import build as trt_build
from export.trt import engines, latency
from export.trt import parity as engine_parity
from export.trt import runner as trt_runner
from export.trt.__main__ import main
from export.trt.cache import EngineCache, Entry
from export.trt.options import BuildOptions, Profile
from export.trt.record import engine_key, read_graph, read_record

RTX = ["--builder", "tensorrt-rtx", "--opt-batch", "2", "--max-batch", "4"]
NO_TENSORRT = importlib.util.find_spec("tensorrt") is None


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, its report and what it said."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


# --- building --------------------------------------------------------------------------------


def test_engine_is_built_with_its_facts_beside(
    small_graph: Path, engine_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "small.engine"
    flags = ["--workspace", 64, "--compute-capability", 86, 89]
    assert main([str(w) for w in (small_graph, "--out", out, *RTX, *flags)]) == 0
    printed, said = capsys.readouterr()
    assert len(printed.splitlines()) == 1  # stdout is data: TensorRT's own messages go to the log
    report, record = json.loads(printed), json.loads((out.parent / "small.engine.json").read_text())
    assert report.pop("engine") == str(out)
    assert report.pop("cached") is False
    assert report == {k: v for k, v in record.items() if k != "engine"} | record["engine"]
    assert record["engine"] == {"sha256": sha256_of(out), "size_bytes": out.stat().st_size}
    assert record["graph"] == {"model.onnx": sha256_of(small_graph)}
    assert record["key"]["options"]["profile"] == {"min_batch": 1, "opt_batch": 2, "max_batch": 4}
    assert record["key"]["options"]["workspace_bytes"] == 64 * 2**20
    assert record["key"]["options"]["compute_capabilities"] == ["86", "89"]
    assert record["key"]["version"].startswith("1.")
    assert record["key"]["gpu"] is None
    assert record["source"]["model"] == "small"
    assert record["inputs"]["z"] == {"dtype": "float", "shape": [-1, 64]}
    assert record["outputs"]["images"] == {"dtype": "uint8", "shape": [-1, 4, 4, 3]}
    assert record["timing"]["build_s"] > 0
    assert record["timing"]["latency"] is None
    assert f"--saveEngine={out}" in record["command"]
    assert record["command"] in said
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, out.name + ".json"]


def test_parity_is_not_claimed_where_the_engine_cannot_run(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report, said = run(capsys, small_graph, *RTX)
    assert report["parity"]["measured"] is False
    assert "no NVIDIA GPU" in report["parity"]["reason"]
    assert "passed" not in report["parity"]
    assert "parity was not measured: There is no NVIDIA GPU" in said


def test_second_build_of_the_same_key_is_a_hit(
    small_graph: Path,
    engine_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, first, said = run(capsys, small_graph, *RTX)
    engine = Path(first["engine"])
    assert engine.parent == engine_cache
    assert "%" in said  # the bar

    def not_again(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(trt_build, "compile_graph", not_again)
    code, second, _ = run(capsys, small_graph, *RTX)
    assert code == 0
    assert second == first | {"cached": True}
    out = tmp_path / "small.engine"
    code, third, _ = run(capsys, small_graph, *RTX, "--out", out)
    assert (third["cached"], out.read_bytes()) == (True, engine.read_bytes())
    with pytest.raises(AssertionError, match="built again"):
        main([str(small_graph), *RTX[:-1], "3"])


def test_damaged_engine_is_built_again(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, _ = run(capsys, small_graph, *RTX)
    engine = Path(first["engine"])
    engine.write_bytes(engine.read_bytes()[:-1])
    _, second, _ = run(capsys, small_graph, *RTX)
    assert second["cached"] is False
    assert read_record(engine)["engine"]["sha256"] == sha256_of(engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "studio.onnx"])
def test_shipped_graphs_build(
    shipped_folder: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags = ["--compute-capability", 89]
    code, report, _ = run(capsys, shipped_folder / name, *RTX, *flags)
    assert code == 0
    assert report["source"]["model"] == "fashion-32"
    assert report["inputs"]["z"] == {"dtype": "float", "shape": [-1, 64]}
    assert report["outputs"]["images"] == {"dtype": "uint8", "shape": [-1, 32, 32, 3]}
    assert report["size_bytes"] > 2**20
    assert set(report["outputs"]) == {"images", "ok"} | ({"stage_images"} if "studio" in name else set())  # fmt: skip


# --- what does not work ----------------------------------------------------------------------


def test_broken_graph_leaves_no_engine(
    tmp_path: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, out = tmp_path / "model.onnx", tmp_path / "engines" / "x.engine"
    graph.write_bytes(b"not a graph")
    code, _, said = run(capsys, graph, *RTX, "--out", out)
    assert code == 1
    assert "model.onnx is no ONNX graph" in said
    assert not out.parent.exists()
    assert not engine_cache.exists()


def test_graph_that_the_builder_does_not_know_is_an_error(
    tmp_path: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b"]) for n in "xy"]
    node = helper.make_node("Purr", ["x"], ["y"], domain="cats")
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("cats", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    code, _, said = run(capsys, path, *RTX)
    assert code == 1
    assert "tensorrt-rtx cannot parse model.onnx" in said
    assert "Purr" in said


def test_graph_with_a_fixed_batch_is_an_error(
    tmp_path: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str], write_graph: Any
) -> None:
    code, _, said = run(capsys, write_graph(tmp_path / "model.onnx", batch=2), *RTX)
    assert code == 1
    assert "The input z has shape [2, 64]: only its batch may be free, and must be" in said


def test_unknown_compute_capability_names_the_known(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, small_graph, *RTX, "--compute-capability", 12)
    assert code == 2
    assert "No compute capability 12" in said
    assert "89" in said.splitlines()[-1]


@pytest.mark.skipif(not NO_TENSORRT, reason="TensorRT is installed")
def test_missing_package_is_one_clear_line_and_exit_code_2(
    small_graph: Path, engine_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.engine"
    code, _, said = run(capsys, small_graph, "--out", out)
    assert code == 2
    assert said.splitlines()[0].startswith("error: The builder tensorrt cannot be used")
    assert "pip install" in said.splitlines()[1]
    assert len(said.splitlines()) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--timing-cache", "x"], "tensorrt-rtx does not support --timing-cache"),
        (["--version-compatible"], "tensorrt-rtx does not support --version-compatible"),
        (["--hardware-compatibility", "ampere+"], "tensorrt-rtx does not support --hardware-compatibility"),
        (["--strip-weights"], "tensorrt-rtx needs a GPU for --strip-weights"),
        (["--builder", "tensorrt", "--compute-capability", "89"], "tensorrt does not support --compute-capability"),
        (["--opt-batch", "9", "--max-batch", "8"], "are no profile"),
        (["--min-batch", "0"], "are no profile"),
        (["--workspace", "0"], "--workspace is 0 MiB"),
        (["--parity-classes", "-1"], "--parity-classes is -1"),
        (["--list"], "Name one graph, or one of"),
        (["--unused-days", "3"], "--unused-days has no meaning"),
        (["--refit", "x.engine"], "--builder has no meaning with --refit"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_a_usage_error_and_never_ignored(
    small_graph: Path,
    engine_cache: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    code, _, said = run(capsys, small_graph, *RTX[:2], *flags)
    assert code == 2
    assert message in said
    assert said.count("error:") == 1
    assert not engine_cache.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name one graph"),
        (["--list", "--prune"], "--list and --prune are two commands"),
        (["--verify", "--max-batch", "3"], "--max-batch has no meaning with --verify"),
        (["--list", "--out", "x"], "--out and --refit have no meaning with --list"),
    ],
)
def test_commands_that_do_not_belong_together_are_usage_errors(
    engine_cache: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, _, said = run(capsys, *words)
    assert code == 2
    assert message in said


def test_graph_that_is_not_there_is_an_error(
    tmp_path: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, tmp_path / "none.onnx", *RTX)
    assert code == 1
    assert "There is no graph" in said


def test_rtx_itself_cannot_strip_weights_without_a_gpu(
    small_graph: Path, engine_cache: Path
) -> None:
    """Why the flag is refused before a build: when this fails, RTX has learnt it."""
    import tensorrt_rtx

    options = BuildOptions("tensorrt-rtx", Profile(1, 2, 4), strip_weights=True)
    with pytest.raises(ArtefactError, match=r"tensorrt-rtx cannot build model\.onnx"):
        trt_build.compile_graph(tensorrt_rtx, small_graph, options)


# --- weights put back ------------------------------------------------------------------------


@pytest.fixture
def stripped(small_graph: Path, engine_cache: Path) -> Entry:
    """The record of an engine without weights; its bytes are none, for building one takes a GPU."""
    options = BuildOptions("tensorrt-rtx", strip_weights=True)
    key = engine_key(read_graph(small_graph), options, "1.7.1.116", None, "linux-x86_64")
    facts = {"source": {"graph": "model.onnx", "model": "small"}, "graph": {}, "inputs": {}, "outputs": {},
             "command": "", "timing": {"build_s": 1.0, "latency": None}, "parity": {"measured": False}}  # fmt: skip
    return EngineCache(engine_cache).add(key, b"no weights", facts)


def test_refit_needs_the_graph_that_the_engine_was_built_from(
    stripped: Entry, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_graph: Any
) -> None:
    other = write_graph(tmp_path / "other.onnx", batch="b")
    code, _, said = run(capsys, other, "--refit", stripped.engine)
    assert code == 2
    assert "was not built from other.onnx" in said


def test_refit_refuses_an_engine_with_weights(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report, _ = run(capsys, small_graph, *RTX)
    code, _, said = run(capsys, small_graph, "--refit", report["engine"])
    assert code == 2
    assert "has its weights" in said


def test_refit_without_a_gpu_is_one_clear_line_and_exit_code_2(
    stripped: Entry, small_graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, small_graph, "--refit", stripped.engine)
    assert code == 2
    assert said.startswith("error: There is no NVIDIA GPU here")
    assert len(said.splitlines()) == 2


def test_refitted_engine_is_an_entry_of_its_own(
    stripped: Entry,
    small_graph: Path,
    engine_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refit itself takes a GPU, so here it gives bytes; what is done with them is real."""
    monkeypatch.setattr(trt_build, "refit_plan", lambda *_: b"with weights")
    code, first, _ = run(capsys, small_graph, "--refit", stripped.engine)
    assert (code, first["cached"], first["key"]["refitted"]) == (0, False, True)
    assert Path(first["engine"]).read_bytes() == b"with weights"
    assert stripped.engine.read_bytes() == b"no weights"
    _, second, _ = run(capsys, small_graph, "--refit", stripped.engine)
    assert second["cached"] is True


# --- parity, where an engine can be run ------------------------------------------------------


class OnEngine:
    """What an engine looks like to its proof, computed by the graph in ONNX Runtime; `off` spoils its images."""

    min_batch, opt_batch, max_batch = 1, 2, 4

    def __init__(self, graph: Path, off: int = 0) -> None:
        from export.graphs import onnx_engine

        self._run, self._off, self.closed = onnx_engine(graph), off, False

    def __call__(self, batch: Any) -> Any:
        from cat_serve.contract import Output

        output = self._run(batch)
        return Output(output.images ^ self._off, output.ok)

    def close(self) -> None:
        self.closed = True


def test_engine_that_can_be_run_is_held_to_its_graph_and_timed_once(
    small_graph: Path,
    engine_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[OnEngine] = []
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: opened.append(OnEngine(small_graph)) or opened[-1])  # type: ignore[func-returns-value]  # fmt: skip
    monkeypatch.setattr(engines, "TIMED_REPEATS", 3)
    for _ in range(2):
        code, report, said = run(capsys, small_graph, *RTX)
        assert code == 0
        assert report["parity"]["passed"] is True
        assert report["parity"]["held_to"] == "fp32"
        assert report["parity"]["difference"]["images"] == 15
        assert report["parity"]["batches"].keys() == {"2", "3", "4"}
        assert [t["batch"] for t in report["timing"]["latency"]] == [1, 2, 4]
        assert "not measured" not in said
    assert [engine.closed for engine in opened] == [True]
    assert read_record(Path(report["engine"]))["parity"]["measured"] is True


def test_engine_beyond_the_budget_is_not_kept(
    small_graph: Path,
    engine_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: OnEngine(small_graph, off=2))
    out = tmp_path / "x.engine"
    code, _, said = run(capsys, small_graph, *RTX, "--out", out)
    assert code == 1
    assert "differs too much" in said
    assert not out.exists()
    assert list(engine_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "model", "reason"),
    [(0, "small", "--parity-classes 0"), (1, None, "no manifest beside the graph")],
)
def test_why_parity_was_not_measured_is_in_the_record(
    stripped: Entry, small_graph: Path, engine_cache: Path, monkeypatch: pytest.MonkeyPatch,
    classes: int, model: str | None, reason: str,
) -> None:  # fmt: skip
    cache = EngineCache(engine_cache)
    key = stripped.record["key"] | {"refitted": True}
    source = {"graph": "model.onnx", "model": model}
    entry = cache.add(key, b"x", stripped.record | {"key": key, "source": source})
    proven = engines.proven(entry, small_graph, cache, classes)
    assert proven.record["parity"]["measured"] is False
    assert reason in proven.record["parity"]["reason"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    source = {"graph": "model.onnx", "model": "small"}
    proven = engines.proven(entry.update(source=source), small_graph, cache, 1)
    assert proven.record["parity"]["reason"].startswith("ONNX Runtime, the reference, is not")
    unproven = engines.proven(stripped, small_graph, cache, 1)
    assert unproven.record["parity"]["reason"] == "it has no weights"


@pytest.mark.parametrize(("smallest", "size"), [(1, 4), (3, 3)])
def test_parity_runs_only_batches_that_the_engine_takes(
    small_graph: Path, smallest: int, size: int
) -> None:
    from export.graphs import onnx_engine

    sizes: list[int] = []
    graph = onnx_engine(small_graph)

    def engine(batch: Any) -> Any:
        sizes.append(len(batch))
        return graph(batch)

    subject = engine_parity.Subject("engine", engine, "fp32", smallest, size)
    batch = engine_parity.probe_of({"num_classes": 5, "z_shape": [64]}, False, 5)
    report = engine_parity.measure_parity(subject, small_graph, batch)
    assert report["passed"] is True
    assert min(sizes) >= smallest
    assert max(sizes) == size
    assert bool(report["batches"]) == (smallest == 1)


def test_rows_that_change_with_their_batch_fail(small_graph: Path) -> None:
    from cat_serve.contract import Output
    from export.graphs import onnx_engine

    graph = onnx_engine(small_graph)

    def engine(batch: Any) -> Any:
        output = graph(batch)
        return Output(output.images ^ (3 if len(batch) == 3 else 0), output.ok)

    subject = engine_parity.Subject("x.engine", engine, "fp32", 1, 4)
    batch = engine_parity.probe_of({"num_classes": 5, "z_shape": [64]}, False, 4)  # 12 rows: no 3
    report = engine_parity.measure_parity(subject, small_graph, batch)
    assert report["passed"] is False
    (failure,) = report["failures"]
    assert failure.startswith("In batches of 3, rows of x.engine differ by")


def test_parity_error_names_what_differs(stripped: Entry, small_graph: Path, engine_cache: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    cache = EngineCache(engine_cache)
    key = stripped.record["key"] | {"refitted": True}
    source = {"graph": "model.onnx", "model": "small", "num_classes": 5, "z_shape": [64]}
    inputs = dict.fromkeys(("z", "class_id", "truncation_psi"))
    entry = cache.add(key, b"x", stripped.record | {"key": key, "source": source, "inputs": inputs})
    monkeypatch.setattr(trt_runner, "open_engine", lambda path: OnEngine(small_graph, off=2))
    monkeypatch.setattr(latency, "WARM_UP", 0)
    with pytest.raises(ParityError, match=r"PSNR .* dB") as caught:
        engines.proven(entry, small_graph, cache, 1)
    assert "not kept" in str(caught.value.hint)


# --- looking after the cache -----------------------------------------------------------------


def test_cache_is_listed_verified_and_pruned(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, small_graph, *RTX)
    good, report, _ = run(capsys, "--verify")
    assert (good, report["passed"], report["damaged"]) == (0, True, {})
    assert main(["--list"]) == 0
    line, last = capsys.readouterr().out.splitlines()
    assert "small  model.onnx  fp32  1-2-4  tensorrt-rtx 1." in line
    (listed,) = json.loads(last)["engines"]
    assert listed["gpu"] == "any"
    engine = engine_cache / listed["engine"]
    engine.write_bytes(b"x")
    bad, report, _ = run(capsys, "--verify")
    assert (bad, list(report["damaged"])) == (1, [engine.name])
    _, report, _ = run(capsys, "--prune")
    assert list(report["removed"]) == [engine.name]
    assert list(engine_cache.iterdir()) == []


def test_prune_removes_engines_of_another_version_of_an_installed_builder(
    stripped: Entry, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = EngineCache(engine_cache)
    older = stripped.record["key"] | {"version": "1.0.0.1"}
    cache.add(older, b"old", {k: v for k, v in stripped.record.items() if k not in ("key", "key_sha256", "engine")})  # fmt: skip
    _, report, _ = run(capsys, "--prune")
    assert list(report["removed"].values()) == ["of tensorrt-rtx 1.0.0.1, here 1.7.1.116"]
    assert cache.find(stripped.record["key"]) is not None


def test_other_folder_can_be_named(
    small_graph: Path, engine_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report, _ = run(capsys, small_graph, *RTX, "--cache", tmp_path / "mine")
    assert Path(report["engine"]).parent == tmp_path / "mine"
    assert not engine_cache.exists()


def test_interrupted_build_leaves_nothing(
    small_graph: Path, engine_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    import signal

    from export.trt.progress import BuildProgress

    begin = BuildProgress.start

    def interrupt(self: BuildProgress, name: str, parent: str | None, steps: int) -> None:
        begin(self, name, parent, steps)
        if parent is None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(BuildProgress, "start", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert main([str(small_graph), *RTX]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not engine_cache.exists()
    assert signal.getsignal(signal.SIGINT) is before
