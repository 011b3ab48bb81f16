"""The references in docs/ are what the code says, and the glossary has the words that the guides use."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cat_serve.settings import Settings
from cat_serve.web.problems import PROBLEMS
from docs.reference.__main__ import pages, write
from docs.reference.examples import Example
from docs.reference.routes import require_examples
from docs.reference.schemas import kind

WORDS = (
    "z", "w", "psi", "latents", "stage", "studio", "artefact", "manifest", "version", "golden image",
    "determinism level", "pass", "row", "queue", "deadline", "EMA", "R1", "seed", "mixture", "permalink",
)  # fmt: skip


@pytest.fixture(scope="module")
def written() -> Mapping[str, str]:
    """What `make docs` would write now."""
    return asyncio.run(pages())


@pytest.mark.parametrize("name", ["api.md", "settings.md", "metrics.md"])
def test_page_is_what_the_code_says(
    written: Mapping[str, str], project_root: Path, name: str
) -> None:
    page = (project_root / "docs" / name).read_text(encoding="utf-8")
    assert page == written[name], "run `make docs`"


def test_all_pages_are_compared(written: Mapping[str, str]) -> None:
    assert written.keys() == {"api.md", "settings.md", "metrics.md"}


def test_reference_has_every_code_setting_and_metric(written: Mapping[str, str]) -> None:
    for code, problem in PROBLEMS.items():
        assert f"| `{code}` | {problem.status} |" in written["api.md"]
    for name in Settings.model_fields:
        assert f"`CAT_SERVE_{name.upper()}`" in written["settings.md"]
    assert "`--api-keys`" not in written["settings.md"]
    for metric in ("queued_images` | gauge | `model`", "requests_total` | counter | `route`, `status`",
                   "batch_images` | histogram | `model`"):  # fmt: skip
        assert f"`cat_serve_{metric}" in written["metrics.md"]


def test_examples_hold_nothing_of_this_moment_or_machine(written: Mapping[str, str]) -> None:
    again = asyncio.run(pages())
    assert again == written
    assert not re.search(r"/home/|/root|/tmp|/work", written["api.md"])


def test_examples_are_answered_as_their_statuses_say(written: Mapping[str, str]) -> None:
    statuses = re.findall(r"^HTTP/1.1 (\d+)", written["api.md"], re.MULTILINE)
    assert {"200", "400", "404", "422"} == set(statuses)
    answers = re.findall(r"```http\n(.*?)\n```", written["api.md"], re.DOTALL)
    bodies = [answer.partition("\n\n")[2] for answer in answers]
    whole = [
        json.loads(body) for body in bodies if body.startswith("{") and not body.endswith("...")
    ]
    assert len(whole) > 10


def test_route_without_an_example_is_refused() -> None:
    document: Any = {"paths": {"/new": {"get": {}}}}
    require_examples(document, [Example("GET", "/new", "/new?a=1")])
    with pytest.raises(ValueError, match="/new"):
        require_examples(document, [])
    with pytest.raises(ValueError, match="/old"):
        require_examples(document, [Example("GET", "/new", "/new"), Example("GET", "/old", "/old")])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 4.0}, "integer 0 .. 4"),
        ({"type": "number", "minimum": 1}, "number >= 1"),
        ({"enum": ["a", True]}, "`a`, `true`"),
        ({"enum": [*range(14)]}, ", ".join(f"`{i}`" for i in range(12)) + " and 2 more"),
        ({"anyOf": [{"$ref": "#/components/schemas/ModelCard"}, {"type": "null"}]},
         "[ModelCard](#modelcard) or null"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "list of integers, at least 1"),
        ({"type": "string", "maxLength": 4000}, "text of at most 4,000 characters"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of text by name"),
    ],
)  # fmt: skip
def test_schemas_are_said_in_words(schema: dict[str, Any], words: str) -> None:
    assert kind(schema) == words


def test_pages_that_are_up_to_date_are_left_alone(tmp_path: Path) -> None:
    texts = {"api.md": "one", "settings.md": "two"}
    assert write(texts, tmp_path)["changed"] == ["api.md", "settings.md"]
    (tmp_path / "settings.md").write_text("old")
    assert write(texts, tmp_path)["changed"] == ["settings.md"]
    assert (tmp_path / "settings.md").read_text() == "two"


@pytest.mark.parametrize("word", WORDS)
def test_glossary_explains(project_root: Path, word: str) -> None:
    glossary = (project_root / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*.+?) \| (.+) \|$", glossary, re.MULTILINE)
    explained = {name: text for names, text in rows for name in re.findall(r"\*\*(.+?)\*\*", names)}
    assert 20 < len(explained[word]) < 300


def test_glossary_has_each_word_once_and_is_linked(project_root: Path) -> None:
    glossary = (project_root / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"\*\*(.+?)\*\*", glossary)
    assert len(words) == len(set(words))
    for page in (
        "README.md",
        "docs/serving.md",
        "docs/training.md",
        "docs/export.md",
        "docs/triton.md",
    ):
        text = (project_root / page).read_text(encoding="utf-8")
        assert "glossary.md" in text, page
    assert "docs/api.md" in (project_root / "README.md").read_text(encoding="utf-8")
