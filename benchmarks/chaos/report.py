"""The tables of docs/reliability.md, and the same as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.chaos.results import Result
from cat_serve.bench import machine
from cat_serve.errors import InvalidInput
from cat_serve.files import write_text

START, END = "<!-- measured -->", "<!-- end of measured -->"
PACKAGES = ("cat-serve", "onnxruntime", "fastapi", "uvicorn", "numpy", "pillow")
JSON_NAME, TABLE_NAME = "chaos.json", "chaos.md"


def circumstances() -> dict[str, Any]:
    """Return when, where and with what it was measured."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **machine(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "packages": {name: version(name) for name in PACKAGES},
    }


def tables(results: Sequence[Result], facts: dict[str, Any]) -> str:
    """Return everything as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    loads = ", ".join(map(str, facts["load_average"]))
    head = (
        f"Written on {facts['date']}: {facts['cpu']}, cores {facts['cores']}, "
        f"{facts['system']}, load average {loads}; Python {facts['python']}, {versions}."
    )
    return "\n\n".join([head, _overview(results), _promises(results), _faults(results)]).rstrip()


def _overview(results: Sequence[Result]) -> str:
    return _table(
        ("experiment", "load held", "faults survived", "inputs tried", "requests sent", "lost", "memory", "s", "measured", "result"),
        ((r.name, r.load, _count(r.faults), _count(r.inputs), _count(r.requests),
          f"{r.lost:,}" if r.requests else "", r.memory, f"{r.seconds:,.0f}", r.measured,
          "held" if r.passed else "**broken**") for r in results),
    )  # fmt: skip


def _promises(results: Sequence[Result]) -> str:
    return _table(
        ("experiment", "promise", "measured", "limit", "result"),
        ((r.name, p.what, p.measured, p.limit, "held" if p.held else "**broken**")
         for r in results for p in r.promises),
    )  # fmt: skip


def _faults(results: Sequence[Result]) -> str:
    """Return what each fault did to the requests; nothing if there were none."""
    rows = [
        (r.name, f["fault"], f"{f['requests']:,}", f"{f['told why not']:,}", f"{f['recovered_s']}")
        for r in results
        for f in r.figures.get("faults", ())
    ]
    head = ("experiment", "fault", "requests", "told that there is no engine", "s until all was as before")  # fmt: skip
    return _table(head, rows) if rows else ""


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines)  # fmt: skip


def kept(folder: Path) -> dict[str, Result]:
    """Return what was measured before, by the name of the experiment in the command."""
    path = folder / JSON_NAME
    if not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["experiments"]
    return {name: Result.from_dict(entry) for name, entry in entries.items()}


def write(results: Mapping[str, Result], facts: dict[str, Any], folder: Path) -> None:
    """Write both files."""
    everything = {**facts, "experiments": {name: r.as_dict() for name, r in results.items()}}
    write_text(folder / JSON_NAME, json.dumps(everything, indent=1, default=str) + "\n")
    write_text(folder / TABLE_NAME, tables(list(results.values()), facts) + "\n")


def fill(document: Path, text: str) -> None:
    """Put the tables into a document, between its two marks.

    Raises:
        InvalidInput: it has no marks.
    """
    before, start, rest = document.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InvalidInput(f"{document} has no place for tables.", hint=f"add {START} and {END}")
    write_text(document, f"{before}{START}\n\n{text}\n\n{END}{after}")
