"""Messages over a connected socket: many at once, each whole, and arrays without a copy in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Sequence

from cat_serve.errors import BackendError
from cat_serve.workers import frames
from cat_serve.workers.frames import Message

FLUSH_S = 1.0


class Channel:
    """One end of a connection; belongs to the event loop that it was made in.

    What cannot be sent at once waits here, in its order. A connection that broke takes messages and drops them: whoever
    receives gets to know.

    Args:
        connection: a stream socket; it is closed with the channel.
        max_array_bytes: arrays of one message that are received.
    """

    def __init__(
        self, connection: socket.socket, max_array_bytes: int = frames.MAX_ARRAY_BYTES
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._max_array_bytes = max_array_bytes
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[memoryview] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._broken = False

    @property
    def behind(self) -> bool:
        """Whether something waits because the other end does not take it."""
        return bool(self._outbox)

    def send(self, message: Message) -> None:
        """Send a message, or have it sent as soon as there is room. Its arrays must not be changed any more."""
        buffers: Sequence[memoryview] = frames.encoded(message)
        if not self._outbox:
            buffers = self._send_now(buffers)
        if self._broken or not buffers:
            return
        self._outbox.extend(buffers)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_rest())

    async def receive(self) -> Message | None:
        """Return the next message; None when the other end has closed. Only one task may wait here.

        Raises:
            BackendError: what came is no message, or the connection broke inside of one.
        """
        return await frames.read(self, self._max_array_bytes)

    async def fill(self, buffer: memoryview) -> bool:
        """See `frames.Source`."""
        filled = 0
        while filled < len(buffer):
            try:
                got = await self._loop.sock_recv_into(self._socket, buffer[filled:])
            except OSError:  # reset: the other end was killed
                got = 0
            if not got:
                if filled:
                    raise BackendError("The connection between processes broke inside a message.")
                return False
            filled += got
        return True

    def hang_up(self) -> None:
        """End the connection in both directions; `receive` then returns at both ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Give what waits a moment to be sent, and close. Nobody may be receiving any more."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=FLUSH_S)
            self._sending.cancel()
            await asyncio.wait([self._sending])
        self._broken = True
        self._socket.close()

    def _send_now(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Send what the kernel takes at once; return the rest."""
        try:
            sent = 0 if self._broken else self._socket.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._broken = True
        rest = []
        for buffer in [] if self._broken else buffers:
            if sent < len(buffer):
                rest.append(buffer[sent:])
            sent = max(0, sent - len(buffer))
        return rest

    async def _send_rest(self) -> None:
        try:
            while self._outbox:
                await self._loop.sock_sendall(self._socket, self._outbox[0])
                self._outbox.popleft()
        except OSError:
            self._broken = True
            self._outbox.clear()
