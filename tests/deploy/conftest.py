"""The manifests as a cluster would get them, rendered by the real kubectl (a package carries it)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import Objects

KUBERNETES = Path(__file__).parent.parent.parent / "deploy" / "k8s"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())


@cache
def render(folder: str) -> Objects:
    """Return what `kubectl kustomize` makes of a folder of deploy/k8s."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [str(kubectl), "kustomize", str(KUBERNETES / folder)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="session")
def rendered() -> Callable[[str], Objects]:
    """Return a function that gives the objects of a folder of deploy/k8s; they are shared, so only read them."""
    return render


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(rendered: Callable[[str], Objects], overlay: str) -> Objects:
    """The objects of one overlay; a test that takes them runs for each."""
    return rendered(f"overlays/{overlay}")


@pytest.fixture(scope="session")
def adapter_rule() -> dict[str, Any]:
    """The one rule that prometheus-adapter is given."""
    values = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    return dict(rule)
