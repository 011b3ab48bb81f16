"""The codes of problems are a closed list: everything raised is in it, and all of it is documented and tested."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cat_serve.web.problems import PROBLEMS

# Parts whose errors never reach an answer: commands of one's own, and clients.
NOT_SERVED = ("cli", "client", "doctor", "model", "quality", "triton_models")

AT_START = {"bad_settings"}


def raised_codes(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every literal that is given as `code=` in the served part of the package, with its place."""
    package = root / "cat_serve"
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] in NOT_SERVED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        yield str(keyword.value.value), f"{place}:{node.lineno}"


def test_every_code_that_is_raised_is_in_the_list(project_root: Path) -> None:
    found = dict(raised_codes(project_root))
    assert {"bad_mixture", "bad_seeds", "no_studio", "unknown_version"} <= found.keys()
    assert {
        code: place for code, place in found.items() if code not in PROBLEMS.keys() | AT_START
    } == {}


def test_guide_lists_every_code_with_its_status(project_root: Path) -> None:
    guide = (project_root / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([45]\d\d) \|", guide, re.MULTILINE)
    assert [(code, int(status)) for code, status in rows] == [
        (code, kind.status) for code, kind in PROBLEMS.items()
    ]


@pytest.mark.parametrize("code", list(PROBLEMS))
def test_some_test_expects_the_code(project_root: Path, code: str) -> None:
    tests = project_root / "tests" / "serving"
    texts = (path.read_text(encoding="utf-8") for path in tests.glob("test_*.py"))
    assert any(f'"{code}"' in text for text in texts)


def test_codes_are_words_and_statuses_are_errors() -> None:
    for code, kind in PROBLEMS.items():
        assert re.fullmatch("[a-z]+(_[a-z0-9]+)*", code)
        assert 400 <= kind.status < 600
        assert kind.title
    assert len({kind.title for kind in PROBLEMS.values()}) == len(PROBLEMS)
