"""The engine process's end of all connections: takes workers in, and tells them how the service stands."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

from cat_serve.keys import KeyRing
from cat_serve.service import Service
from cat_serve.tracing import Tracing
from cat_serve.wanted import ServedModel
from cat_serve.workers import standing
from cat_serve.workers.channel import Channel
from cat_serve.workers.frames import Message
from cat_serve.workers.session import MAX_REQUEST_BYTES, Session

LOOK_S = 0.02  # a change is known everywhere after this
BEAT_S = 1.0
MAX_VERSIONS = 64


class Hub:
    """Serves one service to its workers.

    Args:
        keys: all keys, whose budgets are counted here.
        told: gets the standing at every change, too.
    """

    def __init__(
        self,
        service: Service,
        keys: KeyRing | None,
        tracing: Tracing | None,
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        self._service = service
        self._keys = keys
        self._tracing = tracing
        self._told = told
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._versions: dict[tuple[str, str], ServedModel] = {}
        self._summary: Any = None
        self._news: dict[str, Any] = {}
        service.metrics.workers.set_function(lambda: len(self._sessions))

    async def run(self, listener: socket.socket) -> None:
        """Take workers in until cancelled; then hang up on all of them."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._accept(listener))
                group.create_task(self._look())
        finally:
            for session in self._sessions:
                session.channel.hang_up()
            await asyncio.gather(*self._sessions.values(), return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        self._refresh()
        session = Session(
            Channel(connection, MAX_REQUEST_BYTES),
            self._service,
            self._keys,
            self._tracing,
            lambda name, version: self._versions.get((name, version)),
        )
        session.channel.send(Message(self._news))
        self._sessions[session] = serving = asyncio.create_task(session.run())
        serving.add_done_callback(lambda _: self._sessions.pop(session))

    async def _look(self) -> None:
        """Tell every worker of every change, and now and then that this process is alive."""
        beaten_s = time.monotonic()
        while True:
            if self._refresh():
                self._broadcast(self._news)
            elif time.monotonic() - beaten_s >= BEAT_S:
                beaten_s = time.monotonic()
                self._broadcast({"beat": True})
            await asyncio.sleep(LOOK_S)

    def _refresh(self) -> bool:
        """Bring the news up to date; say whether there are any."""
        summary = standing.summary(self._service)
        if summary == self._summary:
            return False
        self._summary = summary
        self._news = {"standing": standing.written(self._service)}
        for name, model in self._service.models.items():
            self._versions[name, model.artefact.version] = model
        while len(self._versions) > MAX_VERSIONS:
            del self._versions[next(iter(self._versions))]
        self._told(self._news)
        return True

    def _broadcast(self, news: dict[str, Any]) -> None:
        for session in self._sessions:
            if "standing" in news or not session.channel.behind:  # a beat is no use late
                session.channel.send(Message(news))
