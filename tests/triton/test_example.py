"""The client that users copy, run as they run it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve.contract import Output
from cat_serve.images import decode_png, read_parameters
from export.triton_server.server import TritonServer

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(project_root: Path, triton_server: TritonServer, tmp_path: Path) -> Run:
    """Run the example against the shared server, in a folder of its own."""

    def do(*arguments: str, url: str = triton_server.grpc_url) -> subprocess.CompletedProcess[str]:
        script = str(project_root / "examples" / "grpc_client.py")
        command = [sys.executable, script, "--url", url, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return do


def test_it_needs_numpy_and_tritonclient_only(project_root: Path) -> None:
    tree = ast.parse((project_root / "examples" / "grpc_client.py").read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "tritonclient"}


def test_it_saves_a_batch_of_images(
    run: Run, tmp_path: Path, expected: Callable[..., Output]
) -> None:
    done = run("--class", "Ankle boot", "3", "--seed", "7", "--images", "2", "--psi", "0.7")
    assert done.returncode == 0, done.stderr
    names = ["class-9_seed-7", "class-9_seed-8", "class-3_seed-7", "class-3_seed-8"]
    paths = [Path("images") / f"{name}.png" for name in names]
    assert done.stdout.splitlines() == [str(path) for path in paths]
    saved = np.stack([decode_png((tmp_path / path).read_bytes()) for path in paths])
    np.testing.assert_array_equal(saved, expected([9, 9, 3, 3], [7, 8, 7, 8], 0.7).images)
    assert read_parameters((tmp_path / paths[0]).read_bytes())["truncation_psi"] == 0.7


def test_it_draws_a_seed_that_is_in_the_name_and_takes_format_and_folder(
    run: Run, tmp_path: Path
) -> None:
    done = run("--class", "bag", "--format", "webp", "--model", "fashion-32", "--out", "here")
    (path,) = (tmp_path / "here").glob("class-8_seed-*.webp")
    assert done.stdout.strip() == f"here/{path.name}"
    seed = int(path.stem.rpartition("-")[2])
    assert read_parameters(path.read_bytes())["seed"] == seed


def test_an_error_is_the_servers_sentence_with_its_hint(run: Run, tmp_path: Path) -> None:
    done = run("--class", "bagg")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The model fashion-32 has no class 'bagg'")
    assert "hint: did you mean 'bag'?" in done.stderr
    assert not (tmp_path / "images").exists()


def test_a_server_that_is_not_there_is_one_line(run: Run) -> None:
    done = run("--class", "bag", url="127.0.0.1:1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_snippet_of_the_document_gives_pixels(
    project_root: Path, triton_server: TritonServer
) -> None:
    text = (project_root / "docs" / "triton.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert "127.0.0.1:8003" in snippet
    names: dict[str, Any] = {}
    exec(snippet.replace("127.0.0.1:8003", triton_server.http_url), names)
    assert (names["images"].shape, names["images"].dtype) == ((2, 32, 32, 3), np.uint8)
