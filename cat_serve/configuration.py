"""The settings that are in effect, and where each comes from; secrets stay masked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from cat_serve.settings import ENV_PREFIX

if TYPE_CHECKING:
    from cat_serve.settings import RepositorySettings

logger = logging.getLogger(__name__)

MASK = "**********"
NO_SETTINGS = frozenset({"CAT_SERVE_ENGINE_CACHE"})  # of `python -m export.trt`
# what Kubernetes sets in every container beside a service that is called cat-serve
SERVICE_LINKS = ("CAT_SERVE_SERVICE_", "CAT_SERVE_PORT_")


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


def strangers(
    settings: RepositorySettings, environ: Mapping[str, str] = os.environ
) -> dict[str, str | None]:
    """Return every variable that is named like a setting and is none, with the one that may be meant."""
    known = {ENV_PREFIX + name.upper() for name in type(settings).model_fields} | NO_SETTINGS
    found = sorted(
        name
        for name in environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in known
        and not name.upper().startswith(SERVICE_LINKS)
    )
    return {name: next(iter(get_close_matches(name.upper(), known, 1)), None) for name in found}


def warn_of_strangers(settings: RepositorySettings) -> None:
    """Log each variable that is named like a setting and is none: nothing else tells of a misspelt one."""
    for name, meant in strangers(settings).items():
        logger.warning("%s is no setting%s", name, f"; {meant} is one" if meant else "")


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
