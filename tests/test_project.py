"""The facts that the Makefile, continuous integration and the constraints rely on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("training", "export")
    for path in (ROOT / folder).glob("*.py")
    if "def build_parser(" in path.read_text(encoding="utf-8")
)

FAKE_MAKE = """#!/bin/sh
case "$1 $FAIL" in
  *" $1") echo "1 failed, 6 passed in 1.00s"; exit 2 ;;
  "check "*) echo "===== 312 passed, 2 skipped in 200.00s (0:03:20) =====" ;;
  "wheel-check "*) echo "7 passed, 0 failed" ;;
  *) exit 3 ;;
esac
"""


@pytest.fixture
def ci_with_a_fake_make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs .ci/run where make only says that the tests passed, or that FAIL failed."""
    (tmp_path / "bin").mkdir()
    make = tmp_path / "bin" / "make"
    make.write_text(FAKE_MAKE)
    make.chmod(0o755)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    path = f"{make.parent}{os.pathsep}{os.environ['PATH']}"

    def run(fail: str = "nothing") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(tmp_path / ".ci" / "run")],
            env=os.environ | {"PATH": path, "FAIL": fail},
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def test_ci_runs_check_and_wheel_check_and_counts_both(ci_with_a_fake_make: Any) -> None:
    done = ci_with_a_fake_make()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "319 passed, 0 failed"


@pytest.mark.parametrize("target", ["check", "wheel-check"])
def test_ci_fails_with_either_and_then_counts_nothing(
    ci_with_a_fake_make: Any, target: str
) -> None:
    done = ci_with_a_fake_make(fail=target)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "1 failed, 6 passed in 1.00s"


def test_workflow_runs_what_everyone_can_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    assert job["runs-on"].startswith("ubuntu-")
    steps = job["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    actions = dict(step["uses"].split("@") for step in steps if "uses" in step)
    assert set(actions) == {"actions/checkout", "actions/setup-python"}
    assert all(re.fullmatch(r"v\d+", version) for version in actions.values())
    (python,) = (step["with"]["python-version"] for step in steps if "with" in step)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_every_target_of_the_makefile_is_phony_and_explained() -> None:
    explained = re.findall(r"^([a-z-]+):[^=\n]*## \S", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert sorted(explained) == sorted(phony[1].split())


@pytest.mark.parametrize("module", COMMANDS)
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
    assert lines == sorted(lines, key=str.lower)
