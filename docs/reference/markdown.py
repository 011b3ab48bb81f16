"""Parts of a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

GENERATED = (
    "*Written by `make docs` from the code. Do not edit: change the code, and run it again.*"
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; without rows it is nothing."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def cell(text: str) -> str:
    """Return text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: object) -> str:
    """Return text as code in a line."""
    return f"`{text}`"


def fence(language: str, text: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{text}\n```"


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page(*parts: str) -> str:
    """Return parts as one page, with an empty line between any two that are there."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
