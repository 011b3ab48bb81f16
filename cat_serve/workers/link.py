"""A worker's connection to the engine process, which is made again whenever it breaks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cat_serve.errors import BackendError, BackendUnavailable
from cat_serve.workers import failures
from cat_serve.workers.channel import Channel
from cat_serve.workers.frames import Message

logger = logging.getLogger(__name__)

RETRY_S = 0.05
RETRY_AFTER_S = 1
KEPT_NOTES = 10_000  # what is told while nobody listens: about a minute of refusals


class Link:
    """Requests to the engine process and their answers, many at once, matched by number.

    Args:
        path: of the engine process's socket.
        hear: gets every message that answers no request: news of the engine process.
    """

    def __init__(self, path: Path, hear: Callable[[dict[str, Any]], None]) -> None:
        self.heard_s = 0.0
        self._path = path
        self._hear = hear
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._notes: deque[dict[str, Any]] = deque(maxlen=KEPT_NOTES)

    @property
    def connected(self) -> bool:
        """Whether the engine process has answered on this connection."""
        return self._channel is not None

    async def run(self) -> None:
        """Connect, hand out what comes, and begin anew when the connection breaks; until cancelled."""
        while True:
            try:
                await self._connect_and_receive()
            except OSError:  # nobody listens there yet
                pass
            except BackendError as error:
                logger.error("the engine process: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def ask(self, facts: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Message:
        """Send a request and return its answer; cancelled, take the request back.

        Raises:
            BackendUnavailable: the engine process is not there.
            BackendError: it broke off.
            CatServeError: what it says of the request.
        """
        channel = self._channel
        if channel is None:
            raise BackendUnavailable(
                "The service is not ready: its engine process is being started.",
                hint="GET /readyz says when it is",
                retry_after_s=RETRY_AFTER_S,
            )
        number = next(self._numbers)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            channel.send(Message({**facts, "number": number}, tuple(arrays)))
            message = await answer
        except asyncio.CancelledError:
            channel.send(Message({"op": "cancel", "number": number}))
            raise
        finally:
            del self._pending[number]
        if (failure := message.facts.get("failure")) is not None:
            raise failures.read(failure)
        return message

    def tell(self, facts: dict[str, Any]) -> None:
        """Send what needs no answer; if the engine process is not there, later, the oldest of too many never."""
        if self._channel is None:
            self._notes.append(facts)
        else:
            self._channel.send(Message(facts))

    async def _connect_and_receive(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._path))
        except BaseException:
            connection.close()
            raise
        channel = Channel(connection)
        try:
            while (message := await channel.receive()) is not None:
                self._take(channel, message)
        finally:
            self._lose()
            await channel.close()

    def _take(self, channel: Channel, message: Message) -> None:
        """Hand a message to who waits for it. The first one shows that the engine process serves this connection."""
        self.heard_s = time.monotonic()
        if (number := message.facts.get("number")) is None:
            self._hear(message.facts)
        elif (answer := self._pending.get(number)) is not None and not answer.done():
            answer.set_result(message)
        if self._channel is None:
            self._channel = channel
            while self._notes:
                channel.send(Message(self._notes.popleft()))

    def _lose(self) -> None:
        self._channel = None
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(
                    BackendError(
                        "The engine process broke off while it had the request.",
                        hint="send the request again; the same seed gives the same image",
                    )
                )
