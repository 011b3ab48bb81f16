"""One thing that was looked at, and how findings are shown and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cat_serve.commands import FAILED, OK, USAGE


class Verdict(StrEnum):
    """`none`: there was nothing to look at. `lacks`: this machine lacks something that the settings ask for."""

    OK = "ok"
    NONE = "none"
    WARNING = "warning"
    LACKS = "lacks"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        area: what it is about, such as `model`.
        subject: which one.
        detail: what was seen, in words.
        advice: what to do; None if nothing is to be done.
    """

    area: str
    subject: str
    verdict: Verdict
    detail: str
    advice: str | None = None


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if anything is broken, else 2 if something is lacking, else 0."""
    verdicts = {finding.verdict for finding in findings}
    if Verdict.FAILED in verdicts:
        return FAILED
    return USAGE if Verdict.LACKS in verdicts else OK


def as_table(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and below it what to do."""
    widths = [
        max(len(getattr(finding, column)) for finding in findings)
        for column in ("verdict", "area", "subject")
    ]
    lines = []
    for each in findings:
        cells = (each.verdict, each.area, each.subject)
        columns = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join((*columns, each.detail)))
        if each.advice is not None:
            lines.append(f"{'':<{widths[0]}}  -> {each.advice}")
    return "\n".join(lines)
