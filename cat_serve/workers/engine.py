"""The engine process: the service with its queues and budgets, the socket of the workers, and the admin port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cat_serve.backends.local import BackendFactory
from cat_serve.commands import OK
from cat_serve.keys import KeyRing
from cat_serve.opening import service_of
from cat_serve.phase import Phase
from cat_serve.reloading import on_hangup
from cat_serve.service import Service
from cat_serve.settings import Settings
from cat_serve.tracing import from_environment
from cat_serve.workers.control import Control, Order, ignore_signals
from cat_serve.workers.hub import Hub
from cat_serve.workers.process import run_process


@dataclass(frozen=True)
class EngineArguments:
    """What the engine process is started with.

    Attributes:
        listener: of the workers, a Unix socket.
        admin_listener: of the admin port, if there is one.
        open_engine: opens a model inside the process; by default the engine that the settings name is opened.
    """

    settings: Settings
    keys: KeyRing | None
    listener: socket.socket
    admin_listener: socket.socket | None = None
    open_engine: BackendFactory | None = None


class Leaving:
    """Which order was the last; the process stays until it is LEAVE."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.now = asyncio.Event()
        self.broken_off = False
        self.orphaned = False

    def obey(self, order: Order) -> None:
        """Follow an order."""
        self._service.stop_accepting()
        self.broken_off |= order in (Order.BREAK_OFF, Order.ORPHANED)
        self.orphaned |= order is Order.ORPHANED
        if order is not Order.LEAVE_SOON:
            self.now.set()


def main(arguments: EngineArguments, pipe: Connection) -> None:
    """Compute until ordered to leave; the target of the process.

    SIGTERM is the supervisor's alone, too: workers must come to their end first.
    """
    ignore_signals(signal.SIGTERM)
    run_process(arguments.settings, _serve(arguments, pipe))


async def _serve(arguments: EngineArguments, pipe: Connection) -> None:
    from cat_serve.web.server import admin_port, raise_failure

    settings = arguments.settings
    service = service_of(settings, open_engine=arguments.open_engine)
    tracing = from_environment()
    leaving = Leaving(service)
    control = Control(pipe, leaving.obey)
    hub = Hub(service, arguments.keys, tracing, lambda news: control.tell(news=news))
    async with admin_port(settings, service, arguments.admin_listener):
        async with _serving(hub, arguments.listener) as serving, on_hangup(service.reload):
            await _until_left(service, leaving, control, serving)
        if leaving.broken_off:
            if leaving.orphaned:  # whose folder it is cannot remove it any more
                shutil.rmtree(Path(arguments.listener.getsockname()).parent, ignore_errors=True)
            os._exit(OK)  # a forward pass cannot be broken off
        await service.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    raise_failure(service.failure)


@contextlib.asynccontextmanager
async def _serving(hub: Hub, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Let workers in while the block runs, from before the models are loaded."""
    running = asyncio.create_task(hub.run(listener))
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _until_left(
    service: Service, leaving: Leaving, control: Control, serving: asyncio.Task[None]
) -> None:
    """Load the models, say what came of it, and wait until the process may leave, or workers cannot be served."""
    starting = asyncio.create_task(service.start())
    leave = asyncio.create_task(leaving.now.wait())
    await asyncio.wait([starting, leave, serving], return_when=asyncio.FIRST_COMPLETED)
    if service.phase is not Phase.FAILED:
        if starting.done():
            control.tell(settled=_described(service))
        await asyncio.wait([leave, serving], return_when=asyncio.FIRST_COMPLETED)
    leave.cancel()
    if serving.done():
        serving.result()  # raises
    if not leaving.broken_off:
        await starting


def _described(service: Service) -> dict[str, Any]:
    model = service.model(None)
    return {
        "phase": service.phase,
        "reason": service.reason,
        "label": model.label,
        "classes": len(model.classes),
    }
