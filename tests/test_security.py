"""SECURITY.md: every threat names tests that exist, and what it says of the project is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
THREATS = [line for line in PAGE.splitlines() if line.startswith("| ") and "::" in line]


@pytest.mark.parametrize("threat", THREATS, ids=lambda line: line.split("|")[1].strip())
def test_every_threat_is_shown_by_tests_that_exist(threat: str) -> None:
    cells = [cell.strip() for cell in threat.strip("|").split("|")]
    assert len(cells) == 4
    assert all(cells)
    for path, name in re.findall(r"`(tests/[\w/.]+)::(\w+)`", cells[3]):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"
    assert len(re.findall(r"::", cells[3])) == len(re.findall(r"`tests/[\w/.]+::\w+`", cells[3]))


def test_no_row_of_the_table_is_without_a_test() -> None:
    table = PAGE.split("## Threats")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == THREATS
    assert len(rows) >= 15


def test_links_lead_somewhere_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w/.]+)\)", PAGE):
        assert (ROOT / link).is_file()
    for target in re.findall(r"`make ([a-z-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
