"""How Triton servers are named on the command line and in the environment, and what is refused there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cat_serve.cli import build_parser, main, read_settings
from cat_serve.settings import Settings

NO_TRITON_CLIENT = """
import sys
sys.modules["tritonclient"] = None
from cat_serve.cli import main
sys.exit(main(["serve", "--port", "0", "--backend", "triton", "--triton-url", "127.0.0.1:9"]))
"""
EMBEDDED = """
import asyncio, sys
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

async def main():
    app = create_app(Settings())
    async with app.router.lifespan_context(app):
        await app.state.service.settled.wait()
        assert app.state.service.phase == "ready"

asyncio.run(main())
loaded = {"tritonclient", "grpc"} & sys.modules.keys()
sys.exit(str(loaded) if loaded else 0)
"""


def parsed(*flags: str) -> Settings:
    settings = read_settings(build_parser().parse_args(["serve", *flags]))
    assert isinstance(settings, Settings)
    return settings


@pytest.mark.parametrize(
    "flags",
    [
        ["--triton-url", "a:8001", "--triton-url", "10.0.0.5:8002"],
        ["--triton-url", "a:8001,10.0.0.5:8002"],
        ["--triton-url", "a:8001, 10.0.0.5:8002"],
    ],
)
def test_servers_are_named_by_flags(flags: list[str]) -> None:
    assert parsed("--backend", "triton", *flags).triton_url == ("a:8001", "10.0.0.5:8002")


@pytest.mark.parametrize("value", ["a:8001,[::1]:8002", '["a:8001", "[::1]:8002"]'])
def test_servers_are_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CAT_SERVE_TRITON_URL", value)
    monkeypatch.setenv("CAT_SERVE_BACKEND", "triton")
    assert parsed().triton_url == ("a:8001", "[::1]:8002")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--backend", "triton"], "needs the host:port of at least one server"),
        (["--backend", "triton", "--triton-url", "a"], "'a' is not host:port"),
        (["--backend", "triton", "--triton-url", "a:0"], "'a:0' is not host:port"),
        (["--backend", "triton", "--triton-url", "a:65536"], "is not host:port"),
        (["--backend", "triton", "--triton-url", "grpc://a:8001"], "is not host:port"),
        (["--backend", "triton", "--triton-url", "a:8001,a:8001"], "named twice"),
        (["--triton-url", "a:8001"], "it needs --backend triton, and the backend is onnxruntime"),
        (["--triton-balance", "random"], "least-loaded"),
        (["--deadline-ms", "-1"], "deadline_ms".upper()),
        (["--deadline-ms", "3600001"], "deadline_ms".upper()),
    ],
)
def test_wrong_settings_are_refused_with_the_variables_name(
    capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    assert main(["serve", *flags]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "CAT_SERVE_" in told


def test_list_that_is_no_json_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAT_SERVE_TRITON_URL", '["a:8001"')
    assert main(["serve", "--backend", "triton"]) == 2
    assert "CAT_SERVE_TRITON_URL (--triton-url)" in capsys.readouterr().err


def run(project_root: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=project_root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_without_its_client_the_backend_says_what_to_install(project_root: Path) -> None:
    ended = run(project_root, NO_TRITON_CLIENT)
    assert ended.returncode == 2
    assert "pip install 'cat-serve[triton]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_embedded_engine_loads_nothing_of_triton(project_root: Path) -> None:
    ended = run(project_root, EMBEDDED)
    assert ended.returncode == 0, ended.stderr
