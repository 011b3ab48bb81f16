"""Run the application in uvicorn: bind first, say when it is ready, leave without failing a request."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cat_serve.backends.local import BackendFactory
from cat_serve.errors import CatServeError
from cat_serve.manifest import Artefact
from cat_serve.phase import Phase
from cat_serve.reloading import on_hangup
from cat_serve.service import Service
from cat_serve.settings import Settings
from cat_serve.surface import ImageService
from cat_serve.web.admin import create_admin_app
from cat_serve.web.app import create_app
from cat_serve.web.connections import uvicorn_options
from cat_serve.web.listening import ADMIN_SETTING, address_of, announce, banner, bind

ADMIN_GRACE_S = 2
LATECOMERS_S = 0.1


class Server(uvicorn.Server):
    """uvicorn, except that a signal makes /readyz say 503 at once and the listener closes after a delay.

    Closing means: no new connections, and requests in flight finish. A second signal skips the delay; SIGINT
    while closing breaks off.
    """

    def __init__(self, config: uvicorn.Config, service: ImageService, delay_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay_s = delay_s
        self._leaving = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT; unlike uvicorn's own, does not raise the signal again afterwards."""
        self._service.stop_accepting()
        if self.should_exit and sig == signal.SIGINT:
            self.break_off()
        elif self._leaving:
            self.leave()
        else:
            self.leave_soon()

    def leave_soon(self) -> None:
        """Say so at /readyz at once, and leave after the delay; a signal handler may call it."""
        self._service.stop_accepting()
        if not self._delay_s:
            self.leave()
        elif not self._leaving:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay_s, self.leave)
        self._leaving = True

    def leave(self) -> None:
        """Close the listener and let requests in flight finish."""
        self.should_exit = True

    def break_off(self) -> None:
        """Leave without waiting for requests in flight."""
        self.should_exit = self.force_exit = True

    async def _wait_tasks_to_complete(self) -> None:
        """Wait for requests in flight; uvicorn forgets connections that were accepted in the last moment."""
        telling = asyncio.create_task(self._tell_latecomers())
        try:
            await super()._wait_tasks_to_complete()
        finally:
            telling.cancel()

    async def _tell_latecomers(self) -> None:
        """Let no connection be used for another request, so that a busy client cannot hold up the end."""
        while True:
            await asyncio.sleep(LATECOMERS_S)
            for connection in list(self.server_state.connections):
                connection.shutdown()


class AdminServer(uvicorn.Server):
    """uvicorn, except that signals are the public server's; it is told to leave when that has left."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    settings: Settings,
    artefacts: Mapping[str, Artefact],
    open_engine: BackendFactory | None = None,
) -> None:
    """Serve until a signal; the arguments are those of `create_app`.

    Raises:
        CatServeError: the port is taken, or a model cannot be served.
    """
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(bind(settings.host, settings.port))
        admin = None
        if settings.admin_port is not None:
            admin = listeners.enter_context(
                bind(settings.admin_host, settings.admin_port, ADMIN_SETTING)
            )
        app = create_app(settings, artefacts, open_engine)
        failure = asyncio.run(_serve(settings, app, listener, admin))
    raise_failure(failure)


def raise_failure(failure: Exception | None) -> None:
    """Raise what the start of a service failed with, if it did, in words for people.

    Raises:
        CatServeError: it failed.
    """
    if isinstance(failure, CatServeError):
        raise failure
    if failure is not None:
        raise CatServeError("The models could not be loaded; the log says why.") from failure


async def _serve(
    settings: Settings, app: FastAPI, listener: socket.socket, admin_listener: socket.socket | None
) -> Exception | None:
    service: Service = app.state.service
    server = Server(config_of(settings, app), service, settings.shutdown_delay_s)
    async with admin_port(settings, service, admin_listener), on_hangup(service.reload):
        serving = asyncio.create_task(server.serve([listener]))
        settled = asyncio.create_task(service.settled.wait())
        await asyncio.wait([serving, settled], return_when=asyncio.FIRST_COMPLETED)
        if service.phase is Phase.FAILED:
            server.leave()
        elif service.phase is Phase.READY:
            model = service.model(None)
            text = banner(address_of(listener), model.label, len(model.classes))
            announce(text, settings)
        elif service.phase is Phase.UNAVAILABLE:
            announce(f"waiting: {service.reason}", settings)
        await serving
        settled.cancel()
    return service.failure


def config_of(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """Return how uvicorn serves the public port."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # `Observed` writes that line
        lifespan="on",
        server_header=False,
        **uvicorn_options(settings),
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )


@contextlib.asynccontextmanager
async def admin_port(
    settings: Settings, service: Service, listener: socket.socket | None
) -> AsyncIterator[None]:
    """Serve the admin port, if there is one, until the block ends: also while the public port is being closed."""
    if listener is None:
        yield
        return
    config = uvicorn.Config(
        create_admin_app(service, settings),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        **uvicorn_options(settings),
        timeout_graceful_shutdown=ADMIN_GRACE_S,
    )
    server = AdminServer(config)
    serving = asyncio.create_task(server.serve([listener]))
    announce(f"metrics and settings are on {address_of(listener)}", settings)
    try:
        yield
    finally:
        server.should_exit = True
        await serving
