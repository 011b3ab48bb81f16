"""Log lines on stderr: for people, or one JSON object each.

A record's facts are in its attribute `facts` (`extra={"facts": {...}}`); both forms show them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """Time, level, logger, message, and the facts as name=value."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        facts = " ".join(f"{name}={value}" for name, value in facts_of(record).items())
        return f"{line} {facts}" if facts else line


class JsonFormatter(logging.Formatter):
    """`ts`, `level`, `logger`, `message`, the facts, and `traceback` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


def configure(level: str, log_format: LogFormat, pid: bool = False) -> None:
    """Send everything that is logged in this process, by other packages too, to stderr in one form.

    A process whose logging was set up by somebody else keeps that.

    Args:
        pid: whether every line says which process wrote it.
    """
    if logging.root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format]())
    if pid:
        handler.addFilter(_with_pid)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


def facts_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the facts of a record that are known."""
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    return {name: value for name, value in facts.items() if value is not None}


def _with_pid(record: logging.LogRecord) -> bool:
    record.facts = {**facts_of(record), "pid": record.process}
    return True
