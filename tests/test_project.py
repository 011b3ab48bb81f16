"""The facts that the README, the Makefile, the Dockerfile and the CI script rely on."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(
        re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?=[`,\s]*(?:`|#|\n|$))", path.read_text())
    )
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_link_to_files_that_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "module", ["training.train_vae", "training.prepare", "training.train", "training.evaluate",
               "export.onnx"],
)  # fmt: skip
def test_help_answers_without_heavy_packages(module: str) -> None:
    """Packages that a machine may lack are made unimportable."""
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'diffusers', 'onnx', 'onnxruntime', 'matplotlib', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = [{module!r}, '--help']\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module}" in done.stdout


def test_dockerfile_copies_only_what_exists() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ")]
    names = [name for group in copied for name in group]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
    admitted = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [name for name in names if f"!{name}" not in admitted] == []


def test_constraints_pin_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + [
        requirement for extra in ("cpu", "train", "export", "dev") for requirement in extras[extra]
    ]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in declared}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names - pinned - {"cat-serve"} == set()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)


def test_serving_needs_neither_torch_nor_onnx() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    served = " ".join(project["dependencies"] + project["optional-dependencies"]["cpu"])
    assert not re.search(r"\b(torch|diffusers|onnx|tensorrt|matplotlib)\b", served)
