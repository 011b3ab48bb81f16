"""A child's end of the pipe to the supervisor: orders come, news go, and its end means that the supervisor is dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any

HELD_BACK = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
ORPHAN_GRACE_S = 5.0
ORPHANED_CODE = 1


class Order(StrEnum):
    """What the supervisor wants of a child; each implies those before it. The last one is that it is dead."""

    LEAVE_SOON = "leave soon"
    LEAVE = "leave"
    BREAK_OFF = "break off"
    ORPHANED = "orphaned"


class Control:
    """Hands the supervisor's orders to the event loop that it was made in.

    A child whose supervisor died breaks off; if it is stuck, it is ended after a moment all the same.

    Args:
        obey: is called with each order.
    """

    def __init__(self, pipe: Connection, obey: Callable[[Order], None]) -> None:
        self._pipe = pipe
        self._obey = obey
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()

    def tell(self, **news: Any) -> None:
        """Send news to the supervisor."""
        with contextlib.suppress(OSError):  # it died; the thread sees to that
            self._pipe.send_bytes(json.dumps(news).encode())

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._pass_on(Order(self._pipe.recv_bytes().decode()))
        self._pass_on(Order.ORPHANED)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(ORPHANED_CODE)

    def _pass_on(self, order: Order) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
            self._loop.call_soon_threadsafe(self._obey, order)


def ignore_signals(*more: signal.Signals) -> None:
    """Leave signals of the terminal to the supervisor, which gives orders; and let those come that were held back."""
    for each in (signal.SIGINT, *more):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
