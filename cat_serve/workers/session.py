"""The engine process's side of one worker's connection: its requests are tasks here, and end with the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendError, BackendUnavailable
from cat_serve.keys import Caller, KeyRing
from cat_serve.observation import CURRENT, Observation
from cat_serve.service import Service
from cat_serve.tracing import Tracing
from cat_serve.wanted import ServedModel
from cat_serve.workers import failures, wire
from cat_serve.workers.channel import Channel
from cat_serve.workers.frames import Message

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 2**28  # of latents
COUNTED = frozenset({"answered", "encoded", "gone"})


class Session:
    """One worker.

    Args:
        served_by: returns a model by name and public version, if this process can still make its images.
    """

    def __init__(
        self,
        channel: Channel,
        service: Service,
        keys: KeyRing | None,
        tracing: Tracing | None,
        served_by: Callable[[str, str], ServedModel | None],
    ) -> None:
        self.channel = channel
        self._service = service
        self._keys = keys
        self._tracing = tracing
        self._served_by = served_by
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Take messages until the worker closes the connection or ends; what it waits for then is cancelled."""
        try:
            while (message := await self.channel.receive()) is not None:
                self._take(message)
        except Exception as error:  # it is not of this version, or it is damaged
            logger.error("a worker sends what is not understood", exc_info=error)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self.channel.close()

    def _take(self, message: Message) -> None:
        facts = message.facts
        match facts.get("op"):
            case "generate":
                self._begin(facts, self._generate(message))
            case "scrape":
                self._begin(facts, self._scrape(facts))
            case "reload":
                self._begin(facts, self._reload())
            case "cancel":
                if (task := self._tasks.get(facts["number"])) is not None:
                    task.cancel()
            case "count" if facts["what"] in COUNTED:
                getattr(self._service.metrics, facts["what"])(*facts["values"])
            case other:
                raise BackendError(f"A worker asks for {other!r}, which is not known here.")

    def _begin(self, facts: dict[str, Any], work: Any) -> None:
        """Do a request's work as a task, and send what it returns, or why it failed."""
        number = facts["number"]
        task = self._tasks[number] = asyncio.create_task(self._answer(facts, work))
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _answer(self, facts: dict[str, Any], work: Any) -> None:
        number = {"number": facts["number"]}
        try:
            answer = await work
            self.channel.send(Message({**answer.facts, **number}, answer.arrays))
        except Exception as error:
            failure = failures.written(error, facts.get("request_id"))
            self.channel.send(Message({"failure": failure, **number}))

    async def _generate(self, message: Message) -> Message:
        facts = message.facts
        CURRENT.set(self._observation(facts))
        deadline: Deadline = wire.deadline_of(facts["deadline"])
        wanted = facts["wanted"]
        model = self._served_by(wanted["model"], wanted["version"])
        if model is None:
            raise BackendUnavailable(
                f"{wanted['model']}@{wanted['version']} was just replaced by another version.",
                hint="send the request again",
                retry_after_s=1,
            )
        request = wire.request_of(wanted, message.arrays, model)
        return wire.of_images(await self._service.generate(request, deadline))

    async def _scrape(self, facts: dict[str, Any]) -> Message:
        content, media_type = await self._service.scrape(facts["accept"])
        return Message({"media_type": media_type}, (np.frombuffer(content, np.uint8),))

    async def _reload(self) -> Message:
        return Message({"models": [asdict(one) for one in await self._service.reload()]})

    def _observation(self, facts: dict[str, Any]) -> Observation:
        trace = None if self._tracing is None else self._tracing.continued(facts["trace"])
        return Observation(facts["request_id"], self._caller(facts["key"]), trace=trace)

    def _caller(self, name: str | None) -> Caller | None:
        """Return the one holder of a key in all processes, whose budget is counted here."""
        if name is None:
            return None
        caller = None if self._keys is None else self._keys.named(name)
        if caller is None:
            raise BackendError(f"The engine process knows no key {name!r}.")
        return caller
