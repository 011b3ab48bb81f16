"""The command: tables, the document, and the exit code when a promise broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import __main__ as command
from benchmarks.chaos.report import END, START, fill
from benchmarks.chaos.results import Promise, Result, at_least, at_most, none_of
from cat_serve.errors import InvalidInput


def result(held: bool = True) -> Result:
    fault = {"fault": "killed", "requests": 7, "told why not": 2, "recovered_s": 1.5}
    return Result(
        "soak", (Promise("none is lost", held, "0 | 1", "0"),), 12.0, 1234, 3, 2, 56, "9 requests/s", "+1 byte",
        {"faults": [fault]},
    )  # fmt: skip


async def fine() -> Result:
    return result()


async def breaks() -> Result:
    return result(held=False)


async def stumbles() -> Result:
    raise OSError("no such device\nand more")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with other experiments; return exit code, report and folder."""

    def with_experiments(*flags: str, **experiments: Any) -> tuple[int, dict[str, Any], Path]:
        monkeypatch.setattr(command, "NAMES", tuple(experiments))
        monkeypatch.setattr(command, "experiments", lambda minutes, out: experiments)
        code = command.main(["--out", str(tmp_path), *flags])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1]), tmp_path

    return with_experiments


def test_tables_and_json_have_every_experiment_and_promise(run: Any) -> None:
    code, report, folder = run(soak=fine, other=fine)
    table = (folder / "chaos.md").read_text()
    kept = json.loads((folder / "chaos.json").read_text())
    assert code == 0
    assert report["requests"] == 2468
    assert "| soak | 9 requests/s | 2 | 56 | 1,234 | 3 | +1 byte | 12 | 20" in table
    assert "| soak | none is lost | 0 / 1 | 0 | held |" in table
    assert "| soak | killed | 7 | 2 | 1.5 |" in table
    assert [entry["passed"] for entry in kept["experiments"].values()] == [True, True]
    assert kept["packages"]["onnxruntime"]


def test_broken_promise_ends_with_1_and_the_others_run_all_the_same(run: Any) -> None:
    code, report, folder = run(first=breaks, second=stumbles, third=fine)
    assert code == 1
    assert report["broken"][0] == "soak: none is lost: 0 | 1, limit 0"
    assert "OSError: no such device" in report["broken"][1]
    kept = json.loads((folder / "chaos.json").read_text())
    assert [entry["passed"] for entry in kept["experiments"].values()] == [False, False, True]
    assert (folder / "chaos.md").read_text().count("**broken**") == 4


def test_experiments_that_are_not_run_again_stay_as_they_were_measured(run: Any) -> None:
    run(first=breaks, second=fine)
    code, report, folder = run("--only", "second", first=stumbles, second=fine)
    assert (code, report["requests"]) == (1, 2468)
    assert report["broken"] == ["soak: none is lost: 0 | 1, limit 0"]
    code, report, _ = run("--only", "first", first=fine, second=stumbles)
    assert (code, report["broken"]) == (0, [])
    assert (folder / "chaos.md").read_text().count("| soak | 9 requests/s |") == 2


def test_document_gets_the_tables_between_its_marks(run: Any, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{START}\nstale\n{END}\nafter\n")
    run("--document", str(document), soak=fine)
    text = document.read_text()
    assert text.startswith(f"before\n{START}\n\nWritten on ")
    assert text.endswith(f"{END}\nafter\n")
    assert "stale" not in text
    assert "| soak |" in text


def test_document_without_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("nothing\n")
    with pytest.raises(InvalidInput, match="no place"):
        fill(document, "tables")


def test_promises_compare_as_they_say() -> None:
    assert [at_most("x", value, 2).held for value in (1, 2, 3, float("nan"))] == [True, True, False, False]  # fmt: skip
    assert [at_least("x", value, 2).held for value in (1, 2, float("nan"))] == [False, True, False]
    assert (none_of("x", []).held, none_of("x", ["a"]).held) == (True, False)
    assert at_most("x", 1234.5, 2, "ms").measured == "1,234 ms"
    assert not Result("empty", ()).passed
