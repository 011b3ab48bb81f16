"""The TensorRT builder: real engines by TensorRT-RTX where it is installed, and what is refused everywhere."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from cat_serve.errors import InvalidInput
from cat_serve.files import sha256_of
from export.trt import BuildOptions, Profile, build, main

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (97 MB): pip install '.[tensorrt-rtx]'",
)
needs_no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed"
)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "studio.onnx"])
def test_engine_is_built_with_its_facts_beside(
    version_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out, graph = tmp_path / "tiny.engine", version_folder / name
    command = [str(graph), "--out", str(out), "--builder", "tensorrt-rtx", "--opt-batch", "2"]
    command += ["--max-batch", "4", "--workspace", "64", "--compute-capability", "89"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1  # stdout is data: TensorRT's own messages go to the log
    facts = json.loads((tmp_path / "tiny.engine.json").read_text())
    assert json.loads(printed[0]) == {"engine": str(out)} | facts
    assert facts["engine_sha256"] == sha256_of(out)
    assert facts["graph"] == {name: sha256_of(graph)}
    assert facts["profile"] == {"min_batch": 1, "opt_batch": 2, "max_batch": 4}
    assert facts["workspace_bytes"] == 64 * 2**20
    assert facts["versions"]["tensorrt-rtx"].startswith("1.")
    assert facts["inputs"]["z"] == "float [-1, 64]"
    assert facts["outputs"]["images"] == "uint8 [-1, 32, 32, 3]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.engine", "tiny.engine.json"]


@needs_rtx
@pytest.mark.slow
def test_broken_graph_leaves_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"not a graph")
    out = tmp_path / "engines" / "x.engine"
    assert main([str(graph), "--out", str(out), "--builder", "tensorrt-rtx"]) == 1
    assert "cannot parse model.onnx" in capsys.readouterr().err
    assert not out.parent.exists()


@needs_rtx
@pytest.mark.slow
def test_unknown_compute_capability_names_the_known(version_folder: Path, tmp_path: Path) -> None:
    options = BuildOptions("tensorrt-rtx", compute_capabilities=("12",))
    with pytest.raises(InvalidInput, match="No compute capability 12") as caught:
        build(version_folder / "model.onnx", tmp_path / "x.engine", options)
    assert "89" in str(caught.value.hint)


@needs_no_tensorrt
def test_missing_package_is_one_clear_line_and_exit_code_2(
    shipped_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.engine"
    assert main([str(shipped_folder / "model.onnx"), "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: The builder tensorrt cannot be used")
    assert "pip install" in lines[1]
    assert len(lines) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--opt-batch", "9", "--max-batch", "8"], "are no profile"),
        (["--min-batch", "0"], "are no profile"),
        (["--workspace", "0"], "--workspace is 0 MiB"),
        (["--compute-capability", "89"], "--compute-capability has no meaning"),
    ],
)
def test_wrong_options_are_usage_errors(
    shipped_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    command = [str(shipped_folder / "model.onnx"), "--out", str(tmp_path / "x"), *flags]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_graph_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.onnx"), "--out", str(tmp_path / "x")]) == 1
    assert "There is no graph" in capsys.readouterr().err


class OldFlag:
    STRONGLY_TYPED = 1


class NoFlag:
    pass


@pytest.mark.parametrize(("flag", "expected"), [(OldFlag, 2), (NoFlag, 0)])
def test_networks_are_strongly_typed_with_and_without_the_flag(flag: Any, expected: int) -> None:
    from types import SimpleNamespace

    from export.trt_network import network_flags

    assert network_flags(SimpleNamespace(NetworkDefinitionCreationFlag=flag)) == expected


def test_builder_without_a_gpu_is_a_missing_dependency() -> None:
    """TensorRT's constructor returns nothing then, which its bindings report as a TypeError."""
    from types import SimpleNamespace

    from cat_serve.errors import MissingDependency
    from export.trt_network import open_builder

    def no_gpu(log: Any) -> None:
        log.errors.append("CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = SimpleNamespace(Builder=no_gpu, __version__="10.9")
    with pytest.raises(MissingDependency, match="failure with error: 35") as caught:
        open_builder(trt, SimpleNamespace(errors=[]), "tensorrt")
    assert "tensorrt-rtx" in str(caught.value.hint)


def test_default_profile_is_valid() -> None:
    assert Profile() == Profile(1, 8, 64)
