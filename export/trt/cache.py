"""Engines that were built before, each under the SHA-256 of everything that decides it.

An entry is KEY.engine with KEY.engine.json. It is used only if its record is of this very key and the engine has the
hash in the record; anything else is said, and built again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cat_serve.errors import ArtefactError
from cat_serve.files import written_whole
from export.trt.record import FORMAT, key_sha256, read_record, record_path, write_record

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CAT_SERVE_ENGINE_CACHE"
SUFFIX = ".engine"
DAY_SECONDS = 86400.0


def default_cache() -> Path:
    """Return CAT_SERVE_ENGINE_CACHE, else `cat-serve/engines` in the user's cache folder."""
    if wanted := os.environ.get(CACHE_VARIABLE):
        return Path(wanted)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "cat-serve" / "engines"


@dataclass(frozen=True)
class Entry:
    """One engine of the cache, and its record."""

    engine: Path
    record: dict[str, Any]

    def update(self, **facts: Any) -> Entry:
        """Write other facts into the record; return the entry with them."""
        record = self.record | facts
        write_record(self.engine, record)
        return Entry(self.engine, record)


class EngineCache:
    """The engines in one folder, which only its owner can write: an engine is code."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return where the engine of a key lies, or will."""
        return self.root / (key_sha256(key) + SUFFIX)

    def find(self, key: Mapping[str, Any]) -> Entry | None:
        """Return the engine of a key; None if there is none that can be trusted."""
        engine = self.path(key)
        if not engine.exists() and not record_path(engine).exists():
            return None
        try:
            entry = self._open(engine)
        except ArtefactError as error:
            logger.warning("not used: %s", error.message)
            return None
        os.utime(engine)  # `prune` goes by when an engine was last used
        return entry

    def add(
        self, key: Mapping[str, Any], plan: bytes | memoryview, facts: Mapping[str, Any]
    ) -> Entry:
        """Write an engine under its key, in place of whatever lies there."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine, view = self.path(key), memoryview(plan)
        with written_whole(engine) as temporary:
            temporary.write_bytes(view)
        record = {
            "format": FORMAT,
            "key": dict(key),
            "key_sha256": key_sha256(key),
            "engine": {"sha256": hashlib.sha256(view).hexdigest(), "size_bytes": view.nbytes},
            **facts,
        }  # fmt: skip
        write_record(engine, record)
        return Entry(engine, record)

    def remove(self, entry: Entry) -> None:
        """Remove an engine and its record."""
        _remove(entry.engine)

    def entries(self) -> Iterator[tuple[Path, Entry | ArtefactError]]:
        """Yield every engine, and what is wrong with it if anything is."""
        found = set(self.root.glob("*" + SUFFIX))
        found |= {path.with_suffix("") for path in self.root.glob(f"*{SUFFIX}.json")}
        for engine in sorted(found):
            try:
                yield engine, self._open(engine)
            except ArtefactError as error:
                yield engine, error

    def prune(
        self, outdated: Callable[[Entry], str | None], unused_days: float | None = None
    ) -> dict[str, str]:
        """Remove engines that are damaged, outdated or were not used for long, and what crashes left behind.

        Args:
            outdated: returns why an engine is of no use any more, or None.

        Returns:
            Why each was removed, by file name.
        """
        removed = {}
        for engine, entry in list(self.entries()):
            why = entry.message if isinstance(entry, ArtefactError) else outdated(entry)
            if why is None and unused_days is not None:
                days = (time.time() - engine.stat().st_mtime) / DAY_SECONDS
                why = f"not used for {days:.0f} days" if days > unused_days else None
            if why is not None:
                _remove(engine)
                removed[engine.name] = why
        for path in self.root.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > DAY_SECONDS:  # else a build may be writing it
                path.unlink(missing_ok=True)
                removed[path.name] = "left behind"
        return removed

    def _open(self, engine: Path) -> Entry:
        record = read_record(engine)
        if engine != self.path(record["key"]):
            raise ArtefactError(f"{engine.name} lies under another engine's name.")
        return Entry(engine, record)


def _remove(engine: Path) -> None:
    engine.unlink(missing_ok=True)
    record_path(engine).unlink(missing_ok=True)
