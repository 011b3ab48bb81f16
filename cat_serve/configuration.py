"""The settings that are in effect, and where each comes from; secrets stay masked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

if TYPE_CHECKING:
    from cat_serve.settings import RepositorySettings

MASK = "**********"


class Effective(NamedTuple):
    """One setting: `source` is `flag`, `environment` or `default`."""

    name: str
    value: Any
    source: str


def effective(settings: RepositorySettings) -> list[Effective]:
    """Return every setting, in the order in which they are declared."""
    return [
        Effective(name, _plain(getattr(settings, name)), settings.source_of(name))
        for name in type(settings).model_fields
    ]


def as_text(settings: RepositorySettings) -> str:
    """Return one line for each setting: name, value and source, in columns."""
    rows = [(each.name, _shown(each.value), each.source) for each in effective(settings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{n:<{widths[0]}}  {v:<{widths[1]}}  {source}" for n, v, source in rows)


def as_object(settings: RepositorySettings) -> dict[str, dict[str, Any]]:
    """Return value and source of every setting by its name, for JSON."""
    return {each.name: {"value": each.value, "source": each.source} for each in effective(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
