"""The service as a worker's web layer sees it; the queues, budgets and engines are in the engine process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from cat_serve.batching import Limits
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.manifest import Determinism
from cat_serve.observation import current
from cat_serve.phase import Phase
from cat_serve.reloading import ModelReload
from cat_serve.surface import GeneratedImages, served
from cat_serve.wanted import ServedModel, Wanted
from cat_serve.workers import standing, wire
from cat_serve.workers.link import Link
from cat_serve.workers.standing import RemoteEngine, Standing

SILENCE_S = 5.0  # the engine process says something every second
DEADLINE_GRACE_S = 0.25  # its own 504 names the stage, so it goes first

STOPPING = "the server is shutting down"
AWAY = "the engine process is being started again"
SILENT = "the engine process does not answer"


class RemoteCounts:
    """See `Counts`: everything is counted in the engine process, so that one scrape has it all."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def answered(
        self, route: str, status: int, seconds: float, code: str | None, key: str | None
    ) -> None:
        self._tell("answered", route, status, seconds, code, key)

    def encoded(self, model: str, encode_ms: float) -> None:
        self._tell("encoded", model, encode_ms)

    def gone(self, route: str) -> None:
        self._tell("gone", route)

    def _tell(self, what: str, *values: Any) -> None:
        self._link.tell({"op": "count", "what": what, "values": values})


class RemoteService:
    """See `ImageService`.

    Args:
        path: of the engine process's socket.
        limits: those of the settings; the engine process has the same.
        known: what the supervisor knows of the engine process, if it does: it may be away just now.
    """

    def __init__(self, path: Path, limits: Limits, known: dict[str, Any] | None = None) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        self._link = Link(path, self._hear)
        self.metrics = RemoteCounts(self._link)
        self._standing = Standing()
        self._stopping = False
        self._models: dict[str, ServedModel] = {}
        self.revision = 0
        self._running: asyncio.Task[None] | None = None
        if known is not None:
            self._hear(known)

    @property
    def default(self) -> str:
        return self._standing.default

    @property
    def models(self) -> dict[str, ServedModel]:
        return self._models

    @property
    def phase(self) -> Phase:
        return self._stands()[0]

    @property
    def reason(self) -> str:
        return self._stands()[1]

    def model(self, name: str | None) -> ServedModel:
        """See `Service.model`."""
        return served(self._models, self.default, name)

    def engine(self, name: str) -> RemoteEngine | None:
        """See `Service.engine`; here that is only what is told of it."""
        return self._standing.models[name].engine

    def determinism(self, name: str, studio: bool = False) -> Determinism:
        """See `Service.determinism`."""
        model = self._standing.models[name]
        return model.studio_determinism if studio else model.determinism

    def stages(self, name: str) -> int:
        """See `Service.stages`."""
        return self._standing.models[name].stages

    async def generate(self, request: Wanted, deadline: Deadline = NEVER) -> GeneratedImages:
        """See `Service.generate`; budget and queue are those of the engine process.

        Raises:
            BackendUnavailable: the engine process is not there.
            BackendError: it broke off.
        """
        observed = current()
        observed.asked(request)
        facts, arrays = wire.of_request(request)
        message = {
            "op": "generate",
            "wanted": facts,
            "deadline": wire.of_deadline(deadline),
            "key": None if observed.caller is None else observed.caller.name,
            "request_id": observed.request_id,
            "trace": observed.stages().metadata(),
        }
        later = Deadline(deadline.at_s + DEADLINE_GRACE_S, deadline.total_ms)
        asking = self._link.ask(message, arrays)
        images = wire.images_of(await later.hold(asking, lambda: "generate"))
        observed.timed(images.queue_ms, images.generate_ms)
        return images

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """See `Service.scrape`: the metrics of all processes."""
        answer = await self._link.ask({"op": "scrape", "accept": accept})
        return answer.arrays[0].tobytes(), answer.facts["media_type"]

    async def reload(self) -> list[ModelReload]:
        """See `Service.reload`."""
        answer = await self._link.ask({"op": "reload"})
        return [ModelReload(**one) for one in answer.facts["models"]]

    async def start(self) -> None:
        """Look for the engine process; return when its models are known, or never will be: it is stopping."""
        if self._running is None:
            self._running = asyncio.create_task(self._link.run())
        await self._settled.wait()

    def stop_accepting(self) -> None:
        """See `Service.stop_accepting`; a signal handler may call it."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._settled.set)

    async def close(self) -> None:
        """See `Service.close`; the engine process goes on."""
        self.stop_accepting()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def _hear(self, news: dict[str, Any]) -> None:
        if "standing" in news:
            self._standing = standing.read(news["standing"], self._standing)
            if self._standing.served != self._models:
                self._models = self._standing.served
                self.revision += 1
            self._settled.set()

    def _stands(self) -> tuple[Phase, str]:
        if self._stopping:
            return Phase.STOPPING, STOPPING
        if not self._link.connected:
            return Phase.UNAVAILABLE, AWAY
        if time.monotonic() - self._link.heard_s > SILENCE_S:
            return Phase.UNAVAILABLE, SILENT
        return self._standing.phase, self._standing.reason
