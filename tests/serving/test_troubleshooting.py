"""The page of error messages quotes messages that the code really has, and codes with their real status."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from cat_serve.metrics import Metrics
from cat_serve.web.problems import PROBLEMS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# What stands in a message for a value that the code fills in.
FILLED_IN = re.compile(
    r"\.\.\.|'[^']*'|\b[\w-]+\.(?:fp16\.)?onnx\b|\b[A-Z]\w+ExecutionProvider\b|\bfp(?:16|32)\b"
    r"|(?<=\w)[:.] |\b[\d.]*\d\b|\bopentelemetry\b|\(--\w+\)|CAT_SERVE_\w+|UNAVAILABLE"
)


def first_cells(heading: str) -> list[str]:
    """Return the text in backticks that each row of a section's table begins with."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


MESSAGES = first_cells("It does not start") + first_cells("With Triton")


@cache
def said() -> str:
    """Return all text in the package's code, what is filled in left out."""
    texts = []
    for path in sorted((ROOT / "cat_serve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_the_code(message: str) -> None:
    parts = [part.strip(" .:,") for part in FILLED_IN.split(message)]
    parts = [part for part in parts if len(part) > 2]
    assert max(map(len, parts), default=0) > 3 or "PORT" in message
    for part in parts:
        assert part in said(), part


def test_enough_messages_are_explained() -> None:
    assert len(MESSAGES) > 12


def test_codes_have_the_status_that_the_page_says() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) >= 10
    assert {code: int(status) for code, status in rows} == {
        code: PROBLEMS[code].status for code, _ in rows
    }
    beyond_the_request = {code for code, kind in PROBLEMS.items() if kind.status in (400, 401, 408, 429) or kind.status >= 500}  # fmt: skip
    assert {code for code, _ in rows} == beyond_the_request


def test_metrics_that_documents_name_exist_and_all_are_named() -> None:
    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    table = guide.split("## Metrics\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(cat_serve_\w+)`", table))
    metrics = Metrics()
    exposed = {
        family.name + "_total" * (family.type == "counter")
        for collector in metrics.registry._collector_to_names
        for family in collector.collect()
        if family.name.startswith("cat_serve_")
    }
    state = {"queued_images", "passes_in_flight", "engine_ready", "ready", "build_info", "model_info", "tasks",
             "pace_image_seconds", "pace_pass_seconds", "predicted_seconds"}  # fmt: skip
    assert named == exposed | {f"cat_serve_{name}" for name in state}
    assert set(re.findall(r"`(cat_serve_\w+)`", PAGE)) <= named
