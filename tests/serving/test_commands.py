"""Reports, errors and exit codes of the `python -m` commands."""

from __future__ import annotations

import errno
import json

import pytest

from cat_serve.commands import run_command
from cat_serve.errors import ArtefactError, CatServeError, InvalidInput, MissingDependency


def raising(error: BaseException) -> dict[str, object]:
    raise error


def test_a_report_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: {"images": 3, "name": "a b"}, extra="train") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"images": 3, "name": "a b"}
    assert printed.out.count("\n") == 1
    assert printed.err == ""


def test_a_check_that_failed_still_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: {"passed": True}, extra="export") == 0
    assert run_command(lambda: {"passed": False, "worst": 9}, extra="export") == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"passed": False, "worst": 9}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ArtefactError("It is damaged.", hint="make it again"), 1),
        (InvalidInput("It is wrong.", hint="1 or 2"), 2),
        (MissingDependency("It is not here.", hint="install it"), 2),
    ],
)
def test_an_error_is_a_line_and_a_hint(
    error: CatServeError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: raising(error), extra="train") == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {error.message}\n  hint: {error.hint}\n"


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: raising(ImportError("no", name="onnx")), extra="export") == 2
    assert capsys.readouterr().err == (
        "error: This command needs onnx.\n  hint: pip install 'cat-serve[export]'\n"
    )


def test_an_interruption_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: raising(KeyboardInterrupt()), extra="train") == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert run_command(lambda: raising(KeyboardInterrupt()), extra="train", resumes=False) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.\n  hint: make"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied.\n  hint: give"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/a"), "f/a: Not a directory.\n"),
    ],
)  # fmt: skip
def test_place_that_cannot_be_written_is_no_traceback(
    error: OSError, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: raising(error), extra="cpu") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err[: 7 + len(told)]) == ("", f"error: {told}")


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        run_command(lambda: raising(OSError(errno.EBADF, "Bad file descriptor")), extra="cpu")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: raising(ZeroDivisionError()), extra="train")
