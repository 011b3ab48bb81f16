"""Bring what is served up to date with the model repository, while it serves."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cat_serve.errors import ArtefactError, BackendUnavailable, CatServeError
from cat_serve.loaded import Loaded
from cat_serve.manifest import MANIFEST_NAME, Artefact, public_version
from cat_serve.repository import load_model
from cat_serve.versions import Versions

logger = logging.getLogger(__name__)

Outcome = Literal["unchanged", "replaced", "added", "failed", "missing"]
Newest = Callable[[], Mapping[str, Path]]


@dataclass(frozen=True)
class ModelReload:
    """What a reload did with one model.

    Attributes:
        outcome: `failed`: its new version was refused; `missing`: it is no more in the repository, and is served on.
        version: what is served now; None if nothing is.
        before: what was served before the reload; None if nothing was.
        reason, hint: of a failure.
    """

    model: str
    outcome: Outcome
    version: str | None
    before: str | None
    reason: str | None = None
    hint: str | None = None


class Reloading:
    """Opens new versions beside the old ones, and switches to those that prove themselves.

    Args:
        newest: returns the folder of the newest version of every model in the repository, by name.
        open_model: opens a version on its engine and proves it.
        switch: serves it from now on.
    """

    def __init__(
        self,
        versions: Versions,
        newest: Newest,
        open_model: Callable[[Artefact], Awaitable[Loaded]],
        switch: Callable[[Loaded], None],
    ) -> None:
        self._versions = versions
        self._newest = newest
        self._open_model = open_model
        self._switch = switch

    async def run(self) -> list[ModelReload]:
        """Look at every model; one that cannot be replaced is served on as it is. Call it once at a time.

        Raises:
            ArtefactError: the repository cannot be read.
        """
        await (
            self._versions.until_retired()
        )  # so that there are never three versions of a model in memory
        try:
            newest = await asyncio.to_thread(self._newest)
        except (OSError, ArtefactError) as error:
            logger.error("not reloaded: %s", error)  # it may name the folder, which no answer does
            raise ArtefactError("The model repository cannot be read.") from error
        names = {loaded.model.name for loaded in self._versions.all_present()} | newest.keys()
        return [await self._model(name, newest.get(name)) for name in sorted(names)]

    async def _model(self, name: str, folder: Path | None) -> ModelReload:
        present = self._versions.present(name)
        before = None if present is None else present.version
        if folder is None:
            logger.warning("%s is no more in the repository; it is served until a restart", name)
            return ModelReload(name, "missing", before, before)
        if present is not None and await asyncio.to_thread(_is, present.model.artefact, folder):
            return ModelReload(name, "unchanged", before, before)
        began_s = time.perf_counter()
        try:
            loaded = await self._opened(name, folder)
        except Exception as error:
            return _refused(name, before, error)
        self._switch(loaded)
        spent_ms = 1e3 * (time.perf_counter() - began_s)
        was = f"instead of {before}" if before else "a new model"
        logger.info("serving %s, %s, after %.0f ms", loaded.model.label, was, spent_ms)
        return ModelReload(name, "replaced" if before else "added", loaded.version, before)

    async def _opened(self, name: str, folder: Path) -> Loaded:
        """Open a version and let it prove itself.

        Raises:
            CatServeError: it is damaged, does not fit or does not make its golden images.
            BackendUnavailable: it is computed elsewhere, and nobody there serves it yet.
        """
        loaded = await self._open_model(await asyncio.to_thread(load_model, name, folder))
        if (reason := loaded.engine.why_unavailable()) is not None:
            await loaded.close()
            raise BackendUnavailable(
                f"The new version cannot be had: {reason}.",
                hint="give the new version to the Triton servers first, then reload",
            )
        return loaded


def _is(artefact: Artefact, folder: Path) -> bool:
    """Say whether a folder is what `artefact` was read from, as far as its manifest tells."""
    manifest = folder / MANIFEST_NAME
    same_place = folder == artefact.folder
    return same_place and manifest.is_file() and public_version(manifest) == artefact.version


def _refused(name: str, before: str | None, error: Exception) -> ModelReload:
    known = isinstance(error, CatServeError)
    on = f"{before} serves on" if before else "it is not served"
    logger.error("%s is not reloaded, %s: %s", name, on, error, exc_info=None if known else error)
    if isinstance(error, CatServeError):
        return ModelReload(name, "failed", before, before, error.message, error.hint)
    return ModelReload(name, "failed", before, before, "an unexpected error; the log has it")


@asynccontextmanager
async def on_hangup(reload: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    """Reload at every SIGHUP while the block runs; failures are in the log."""
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def reload_logged() -> None:
        logger.info("SIGHUP: reading the model repository again")
        try:
            await reload()
        except CatServeError as error:
            logger.error("not reloaded: %s", error)

    def begin() -> None:
        task = loop.create_task(reload_logged())
        running.add(task)
        task.add_done_callback(running.discard)

    before = signal.getsignal(signal.SIGHUP)
    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
        for task in running:
            task.cancel()
