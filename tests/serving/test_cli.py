"""Settings, exit codes and what goes to which stream."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cat_serve import __version__
from cat_serve.cli import build_parser, main, read_settings
from cat_serve.manifest import GOLDEN_NAME
from cat_serve.settings import SECRETS, Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CAT_SERVE_{name.upper()}", raising=False)


def settings_of(*argv: str) -> Any:
    return read_settings(build_parser().parse_args(argv))


def test_flag_wins_over_environment_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of("serve").port == 8000
    monkeypatch.setenv("CAT_SERVE_PORT", "9001")
    assert settings_of("serve").port == 9001
    assert settings_of("serve", "--port", "9002").port == 9002


def test_every_setting_is_a_flag_in_kebab_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for name in Settings.model_fields.keys() - SECRETS:
        assert f"--{name.replace('_', '-')} " in shown
    assert settings_of("serve", "--model-repository", "there").model_repository == Path("there")


def test_server_listens_on_loopback_unless_told() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value"), [("PORT", "tcp://10.0.0.1:80"), ("BACKEND", "warp"), ("THREADS", "-1")]
)
def test_bad_setting_names_variable_flag_and_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv(f"CAT_SERVE_{variable}", value)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    for part in (f"CAT_SERVE_{variable}", f"--{variable.lower()}", value):
        assert part in error


def test_queue_that_cannot_hold_the_largest_request_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--max-images-per-request", "257"]) == 2
    error = capsys.readouterr().err
    assert "--max-queued-images" in error
    assert "at least max_images_per_request, which is 257" in error
    settings = settings_of("serve", "--max-images-per-request", "9", "--max-queued-images", "9")
    assert settings.max_queued_images == 9


def test_misspelt_variable_is_told_and_does_not_stop_anything(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CAT_SERVE_THRAEDS", "1")
    monkeypatch.setenv("CAT_SERVE_ENGINE_CACHE", "somewhere")
    assert main(["serve", "--print-config"]) == 0
    assert [record.message for record in caplog.records] == [
        "CAT_SERVE_THRAEDS is no setting; CAT_SERVE_THREADS is one"
    ]
    assert "THRAEDS" not in capsys.readouterr().out


def test_unknown_flag_and_missing_command_are_usage_errors() -> None:
    for argv in (["serve", "--prot", "1"], [], ["fly"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"cat-serve {__version__}\n"


def test_classes_are_printed_by_index(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model()
    assert main(["classes", "--model-repository", str(repository)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "1\tSea_lion"


def test_models_are_printed_as_a_table(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = add_model("toy")
    add_model("zoo")
    assert main(["models", "--model-repository", str(repository), "--model", "zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t") == ["toy", artefact.version, "5", "12x8", "none", "no"]
    assert lines[2].endswith("\tyes")


@pytest.mark.parametrize("command", ["serve", "classes", "models"])
def test_broken_artefact_is_one_line_and_a_hint(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    artefact = add_model()
    (artefact.folder / GOLDEN_NAME).write_bytes(b"other")
    assert main([command, "--model-repository", str(repository)]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: golden.png of model 'toy' is not the file")
    assert lines[1].startswith("  hint: ")
    assert captured.out == ""


def test_unknown_default_model_is_a_usage_error(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model()
    assert main(["serve", "--model-repository", str(repository), "--model", "other"]) == 2
    assert "models here: toy" in capsys.readouterr().err


def test_busy_port_is_one_line_naming_the_setting(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model-repository", str(repository), "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"Port {port} on 127.0.0.1 is taken" in error
    assert "CAT_SERVE_PORT" in error
    assert "Traceback" not in error


def test_help_loads_neither_engine_nor_web_framework(project_root: Path) -> None:
    script = (
        "import sys, contextlib, cat_serve.cli\n"
        "with contextlib.suppress(SystemExit): cat_serve.cli.main(['serve', '--help'])\n"
        "heavy = {'onnxruntime', 'fastapi', 'uvicorn', 'numpy', 'PIL', 'torch'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=project_root,
        check=True,
        capture_output=True,
        timeout=60,
    )
