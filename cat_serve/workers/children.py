"""One process that the supervisor keeps: started by spawning, heard over a pipe, started again when it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from cat_serve.workers.control import HELD_BACK, Order

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
STEADY_S = 10.0  # whoever served so long is started again at once

SPAWN = multiprocessing.get_context("spawn")  # forking would copy the threads of ONNX Runtime


class Child:
    """A process and its successors.

    Args:
        name: for people.
        target: what it does; is called in the new process with `arguments()` and its end of a pipe.
        arguments: makes what it is started with; it travels through a pipe, never on a command line.

    Attributes:
        ready: whether the present process has said that it serves.
        was_ready: whether any has.
        restarts: how often it was started again.
        failures: ends in a row that came before or soon after it served.
        due_s: when it is started next, on the clock of `time.monotonic`; None while it runs, and when it shall not.
    """

    def __init__(
        self, name: str, target: Callable[[Any, Connection], None], arguments: Callable[[], Any]
    ) -> None:
        self.name = name
        self.ready = False
        self.was_ready = False
        self.restarts = 0
        self.failures = 0
        self.due_s: float | None = time.monotonic()
        self.process: Any = None
        self.pipe: Connection | None = None
        self.ordered: Order | None = None
        self._target = target
        self._arguments = arguments
        self._started_s = 0.0

    @property
    def running(self) -> bool:
        return self.process is not None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.running else None

    def start(self) -> None:
        """Start a process; signals are held back until it can handle them."""
        self.due_s, self._started_s, self.ordered = None, time.monotonic(), None
        self.pipe, its_end = SPAWN.Pipe()
        self.process = SPAWN.Process(
            target=self._target, args=(self._arguments(), its_end), name=self.name
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its_end.close()

    def order(self, order: Order) -> None:
        """Give an order, if there is somebody to take it; the same one only once."""
        if order is self.ordered:
            return
        self.ordered = order
        if self.pipe is not None:
            try:
                self.pipe.send_bytes(order.encode())
            except OSError:  # it has just ended
                self.pipe = None

    def hear(self) -> dict[str, Any] | None:
        """Return the news that lie in the pipe; None if its other end is closed."""
        try:
            assert self.pipe is not None
            news: dict[str, Any] = json.loads(self.pipe.recv_bytes())
            return news
        except (EOFError, OSError):
            self.pipe = None
            return None

    def hang_up(self) -> None:
        """Send it SIGHUP: it shall read its files again."""
        if self.ready:  # before, the signal would end it
            os.kill(self.process.pid, signal.SIGHUP)

    def kill(self) -> None:
        """End the process at once."""
        if self.running:
            self.process.kill()

    def buried(self) -> int:
        """Note that the process has ended; return its exit code, negative for a signal."""
        self.process.join()
        code: int = self.process.exitcode
        self.process.close()
        was_steady = self.ready and time.monotonic() - self._started_s > STEADY_S
        self.failures = 0 if was_steady else self.failures + 1
        self.process, self.pipe, self.ready = None, None, False
        return code

    def start_later(self) -> float:
        """Have it started again after a while that grows with its failures; return the seconds."""
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** max(0, self.failures - 1))
        self.due_s = time.monotonic() + delay_s
        self.restarts += 1
        return delay_s
