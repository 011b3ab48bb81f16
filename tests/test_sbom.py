"""The list of what serving is made of: made by the tool from a real environment, and held to what is promised of it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / ".ci" / "check_sbom.py"
# An environment with the same packages as .venv-serve, which the quick tests have: `make test` makes it.
ENVIRONMENT = ROOT / ".triton" / "env" / "bin" / "python"


def component(name: str, **changes: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "version": "1.0",
        "purl": f"pkg:pypi/{name}@1.0",
        "licenses": [{"license": {"id": "MIT"}}],
    }
    return known | changes


SERVING = [component(name) for name in ("fastapi", "numpy", "onnxruntime", "pillow", "uvicorn")]


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECK), str(path)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_environment_for_serving_is_listed_with_licences(tmp_path: Path) -> None:
    path = tmp_path / "sbom.cdx.json"
    subprocess.run(
        [
            sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"),
            "--output-reproducible", "--validate", "--output-file", str(path), str(ENVIRONMENT),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    listed = json.loads(path.read_text())
    assert (listed["bomFormat"], listed["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "cat-serve",
    )
    done = checked(path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["components"] == len(listed["components"]) > 15
    assert "onnxruntime" in done.stderr


@pytest.mark.parametrize(
    ("components", "complaint"),
    [
        (SERVING, None),
        ([*SERVING, component("torch")], "torch is in it, which serving does not need"),
        (SERVING[1:], "fastapi is not in it"),
        ([*SERVING, component("odd", licenses=[])], "odd has no licence"),
        ([*SERVING, component("odd", version="")], "odd has no version"),
        ([*SERVING, component("odd", purl="")], "odd has no purl"),
        ([*SERVING, component("protobuf", licenses=[])], None),
    ],
)
def test_what_an_sbom_is_held_to(components: list[dict[str, Any]], complaint: str | None) -> None:
    complaints = runpy.run_path(str(CHECK))["complaints"](components)
    assert complaints == ([complaint] if complaint else [])


def test_check_fails_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "sbom.cdx.json"
    path.write_text(json.dumps({"components": SERVING[1:]}))
    done = checked(path)
    assert done.returncode == 1
    assert "error: fastapi is not in it" in done.stderr
