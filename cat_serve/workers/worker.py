"""An HTTP worker: the whole web layer in front of the engine process."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from cat_serve.keys import KeyRing
from cat_serve.opening import limits_of
from cat_serve.settings import Settings
from cat_serve.web.app import application
from cat_serve.web.server import Server, config_of
from cat_serve.workers.control import Control, Order, ignore_signals
from cat_serve.workers.process import run_process
from cat_serve.workers.remote import RemoteService


@dataclass(frozen=True)
class WorkerArguments:
    """What a worker is started with.

    Attributes:
        path: of the engine process's socket.
        known: how the engine process stood when it was last heard of.
    """

    settings: Settings
    keys: KeyRing | None
    path: Path
    listener: socket.socket
    known: dict[str, Any] | None


class WorkerServer(Server):
    """See `Server`; SIGTERM is the first order to leave, and all others come from the supervisor."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: RemoteService,
        delay_s: float,
        started: Callable[[], None],
    ) -> None:
        super().__init__(config, service, delay_s)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so."""
        await super().startup(sockets)
        self._tell_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave after the delay; who sends a signal to a whole group sends it to the supervisor, too."""
        if sig == signal.SIGTERM:
            self.leave_soon()

    def obey(self, order: Order) -> None:
        """Follow an order."""
        if order is Order.LEAVE_SOON:
            self.leave_soon()
        elif order is Order.LEAVE:
            self.leave_soon()
            self.leave()
        else:
            self.break_off()


def main(arguments: WorkerArguments, pipe: Connection) -> None:
    """Serve until ordered to leave; the target of the process."""
    ignore_signals(signal.SIGHUP)
    run_process(arguments.settings, _serve(arguments, pipe))


async def _serve(arguments: WorkerArguments, pipe: Connection) -> None:
    """Serve as soon as it is known which models there are, unless ordered to leave before."""
    settings = arguments.settings
    service = RemoteService(arguments.path, limits_of(settings), arguments.known)
    app = application(settings, service, arguments.keys)
    server = WorkerServer(
        config_of(settings, app),
        service,
        settings.shutdown_delay_s,
        lambda: control.tell(started=True),
    )
    control = Control(pipe, server.obey)
    await service.start()
    if service.models:
        await server.serve([arguments.listener])
    await service.close()
