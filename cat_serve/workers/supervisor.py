"""The process that the user starts: it owns the sockets and keeps one engine process and its workers alive."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.commands import FAILED, OK
from cat_serve.keys import KeyRing, keys_of
from cat_serve.settings import Settings
from cat_serve.web.listening import ADMIN_SETTING, address_of, announce, banner, bind
from cat_serve.workers.children import Child
from cat_serve.workers.control import Order
from cat_serve.workers.owned import private_socket, signals
from cat_serve.workers.targets import engine_main, worker_main

if TYPE_CHECKING:
    from cat_serve.backends.local import BackendFactory

logger = logging.getLogger(__name__)

MAX_FALSE_STARTS = 3
KILL_AFTER_S = 10.0  # beside what the settings grant


def supervise(settings: Settings, open_engine: BackendFactory | None = None) -> int:
    """Serve with several processes until a signal; return the exit code.

    Args:
        open_engine: opens a model in the engine process, which must be able to import it.

    Raises:
        CatServeError: the port is taken, or the keys are none.
    """
    keys = keys_of(settings)
    with contextlib.ExitStack() as owned:
        listener = owned.enter_context(bind(settings.host, settings.port))
        admin = None
        if settings.admin_port is not None:
            admin = owned.enter_context(
                bind(settings.admin_host, settings.admin_port, ADMIN_SETTING)
            )
        path, inner = owned.enter_context(private_socket())
        news = owned.enter_context(signals())
        supervisor = Supervisor(settings, listener, news)
        supervisor.employ(keys, path, inner, admin, open_engine)
        return supervisor.run()


class Supervisor:
    """Runs until it was told to stop and all children have ended.

    Args:
        listener: the public port; workers have it, too, and it is closed here as soon as they leave.
        signals: becomes readable with every signal, one byte each.
    """

    def __init__(self, settings: Settings, listener: socket.socket, signals: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._signals = signals
        self._known: dict[str, Any] | None = None
        self._settled: dict[str, Any] | None = None
        self._announced = False
        self._order: Order | None = None
        self._kill_s: float | None = None
        self._code = OK

    def employ(
        self,
        keys: KeyRing | None,
        path: Path,
        inner: socket.socket,
        admin: socket.socket | None,
        open_engine: BackendFactory | None,
    ) -> None:
        """Say what the children are; `run` starts them."""
        settings = self._settings
        self._engine = Child(
            "engine", engine_main, lambda: (settings, keys, inner, admin, open_engine)
        )
        self._workers = [
            Child(
                f"worker {number}",
                worker_main,
                lambda: (settings, keys, path, self._listener, self._known),
            )
            for number in range(1, settings.workers + 1)
        ]

    @property
    def _children(self) -> list[Child]:
        return [self._engine, *self._workers]

    def run(self) -> int:
        """Keep the children until all have ended; return the exit code."""
        while True:
            self._start_those_due()
            self._leave_further()
            if self._order and not any(child.running for child in self._children):
                return self._code
            ready = connection.wait(self._watched(), self._patience_s())
            for child in self._children:
                if child.pipe in ready:
                    self._hear(child)
                if child.running and child.process.sentinel in ready:
                    self._bury(child)
            if self._signals in ready:
                for number in self._signals.recv(64):
                    self._take_signal(number)

    def _watched(self) -> list[Any]:
        running = [child for child in self._children if child.running]
        pipes = [child.pipe for child in running if child.pipe is not None]
        return [self._signals, *pipes, *(child.process.sentinel for child in running)]

    def _patience_s(self) -> float | None:
        """Return how long nothing need be done; None if only news can change that."""
        moments = [child.due_s for child in self._children] + [self._kill_s]
        next_s = min((moment for moment in moments if moment is not None), default=None)
        return None if next_s is None else max(0.0, next_s - time.monotonic())

    def _start_those_due(self) -> None:
        for child in self._children:
            if child.due_s is not None and child.due_s <= time.monotonic():
                child.start()

    def _hear(self, child: Child) -> bool:
        """Take what a child says; False if it says no more."""
        if (news := child.hear()) is None:
            return False
        if "started" in news or "settled" in news:
            child.ready = child.was_ready = True
        self._known = news.get("news", self._known)
        self._settled = news.get("settled", self._settled)
        self._announce()
        return True

    def _announce(self) -> None:
        """Tell the person at the terminal once that everything is there."""
        settled = self._settled
        if (
            self._announced
            or self._order
            or settled is None
            or not all(w.was_ready for w in self._workers)
        ):
            return
        self._announced = True
        address = address_of(self._listener)
        if settled["phase"] == "ready":
            text = banner(address, settled["label"], settled["classes"])
            announce(f"{text}\n  {len(self._workers)} workers", self._settings)
        else:
            announce(f"waiting: {settled['reason']}", self._settings)

    def _bury(self, child: Child) -> None:
        """Note an end; start the child again, unless that was wanted or would be of no use."""
        while child.pipe is not None and child.pipe.poll() and self._hear(child):
            pass  # its last words
        pid = child.pid
        code = child.buried()
        if self._order is not None:
            return
        if not child.was_ready and (child is self._engine or child.failures >= MAX_FALSE_STARTS):
            self._give_up(code if code > 0 else FAILED)  # it has said why
            return
        delay_s = child.start_later()
        logger.error(
            "%s (pid %s) ended with %s; it is started again in %.1f s",
            child.name,
            pid,
            code,
            delay_s,
        )

    def _give_up(self, code: int) -> None:
        self._code = code
        self._leave(Order.BREAK_OFF)

    def _take_signal(self, number: int) -> None:
        """SIGHUP is the engine process's; another signal begins to leave, the next ones hurry."""
        if number == signal.SIGHUP:
            self._engine.hang_up()
        elif self._order is None:
            logger.info("leaving")
            self._leave(Order.LEAVE_SOON if self._settings.shutdown_delay_s else Order.LEAVE)
        elif self._order is Order.LEAVE and number == signal.SIGINT:
            self._leave(Order.BREAK_OFF)
        elif self._order is Order.LEAVE_SOON:
            self._leave(Order.LEAVE)

    def _leave(self, order: Order) -> None:
        """Give the workers an order; the engine process stays until they have ended."""
        self._order = order
        self._listener.close()
        for child in self._children:
            child.due_s = None
        for worker in self._workers:
            worker.order(order)
        self._engine.order(Order.LEAVE_SOON)
        granted_s = 0.0 if order is Order.BREAK_OFF else self._settings.shutdown_grace_s
        delay_s = self._settings.shutdown_delay_s if order is Order.LEAVE_SOON else 0.0
        self._kill_s = time.monotonic() + delay_s + granted_s + KILL_AFTER_S

    def _leave_further(self) -> None:
        """Let the engine process go after the workers; end what does not end."""
        if self._order is None:
            return
        if self._kill_s is not None and time.monotonic() >= self._kill_s:
            for child in self._children:
                child.kill()
            self._kill_s = None
        if self._engine.running and not any(worker.running for worker in self._workers):
            self._engine.order(Order.LEAVE if self._order is not Order.BREAK_OFF else self._order)
