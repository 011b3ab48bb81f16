"""HTTP connections that nobody can hold open for nothing: uvicorn's h11 protocol with limits on time and number.

Whoever is connected has `request_timeout_s` for the head of a request, and must take something of an answer every
`stall_timeout_s`. When `max_connections` are open, the one that has sent nothing for the longest time makes room; when
all of them have a request, the newest is told to come back later. What is no HTTP gets a problem, not a traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cat_serve.settings import Settings
from cat_serve.web.problems import MEDIA_TYPE, PROBLEMS, members_of

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 * 1024
OWN_DESCRIPTORS = 128  # beside connections: listeners, models, logs
TOLD = 64  # so many beyond the limit are let in to be told that it is reached
CROWDED = "crowded"  # in the state of a request: there are too many connections
ANSWERABLE = (h11.IDLE, h11.SEND_RESPONSE)


@dataclass
class ConnectionLimits:
    """What holds for all connections of a server, and those that have no request now, the oldest first."""

    request_timeout_s: float
    stall_timeout_s: float
    max_connections: int
    idle: dict[Connection, None] = field(default_factory=dict)


class Connection(H11Protocol):
    """One connection. It is idle, except from the end of a request's head to the end of its answer."""

    limits: ConnectionLimits

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self.limits
        if len(self.connections) > limits.max_connections:
            if limits.idle:
                next(iter(limits.idle)).leave()
            elif len(self.connections) > limits.max_connections + TOLD:
                self.connections.discard(self)
                transport.abort()
                return
            else:
                self.app_state = {**self.app_state, CROWDED: True}
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._stop_stall_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it if the connection was reset

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or self._busy:
            self._rest()
            if not self.transport.get_write_buffer_size():
                self._stop_stall_timer()
        elif self._head_timer is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()  # what is left of the answer may be too little to pause writing
        if not (self.transport.is_closing() or self._busy):
            self.limits.idle[self] = None  # uvicorn's own timer ends it

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if the answer to something else has not begun; called in an `except` block."""
        hint = getattr(sys.exception(), "error_status_hint", 0)
        if hint == PROBLEMS["head_too_large"].status:
            self._refuse(
                "head_too_large", f"The head of a request may have {MAX_HEAD_BYTES} bytes."
            )
        else:
            self._refuse("bad_request", "What was received is no HTTP/1.1 request.")

    def leave(self) -> None:
        """Close a connection without a request, so that another has its place."""
        self._rest()
        self.transport.abort()  # also one that does not read its last answer

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self.limits.idle[self] = None
        self._head_timer = self.loop.call_later(self.limits.request_timeout_s, self._late)

    def _rest(self) -> None:
        """Stop the timer of a request that is there, or does not come any more."""
        self.limits.idle.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        """End a connection whose request did not come: with an answer if it had begun."""
        self._head_timer = None
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            waited = f"{self.limits.request_timeout_s:g} s"
            self._refuse("request_timeout", f"The head of the request did not arrive in {waited}.")
        else:
            self._rest()
            self.transport.close()

    def _refuse(self, code: str, detail: str) -> None:
        """Answer with a problem, and close."""
        self._rest()
        if self.cycle is not None and self._busy:  # its task must not answer, too
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in ANSWERABLE and not self.transport.is_closing():
            content = json.dumps(members_of(code, detail)).encode()
            headers = [
                ("content-type", MEDIA_TYPE),
                ("content-length", str(len(content))),
                ("connection", "close"),
            ]
            status, title = PROBLEMS[code]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=title.encode()),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _watch_reader(self) -> None:
        """Look again later whether the client took something of what is to be sent."""
        self._stop_stall_timer()
        if left_bytes := self.transport.get_write_buffer_size():
            self._stall_timer = self.loop.call_later(
                self.limits.stall_timeout_s, self._end_stalled, left_bytes
            )

    def _end_stalled(self, before_bytes: int) -> None:
        """Break off an answer of which nothing was taken since the last look."""
        if self.transport.get_write_buffer_size() < before_bytes:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return what `uvicorn.Config` must be told, so that connections keep to the limits of the settings."""
    limits = ConnectionLimits(
        settings.request_timeout_s,
        settings.stall_timeout_s,
        room_for(settings.max_connections),
    )
    return {
        "http": type("LimitedConnection", (Connection,), {"limits": limits}),
        "ws": "none",
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "timeout_keep_alive": settings.keep_alive_s,
    }


def room_for(connections: int) -> int:
    """Let this process have so many connections; return how many it may really have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + TOLD + OWN_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    new = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
    room = max(1, new - TOLD - OWN_DESCRIPTORS)
    if room < connections:
        logger.warning(
            "%d connections at once, not %d: this machine allows a process %d files",
            room,
            connections,
            new,
        )
    return min(room, connections)
