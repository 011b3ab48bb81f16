"""Run the application in uvicorn: bind first, say when it is ready, leave without failing a request."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cat_serve.backends.local import BackendFactory
from cat_serve.errors import CatServeError, MissingDependency
from cat_serve.manifest import Artefact
from cat_serve.service import Phase, Service
from cat_serve.settings import Settings
from cat_serve.web.admin import create_admin_app
from cat_serve.web.app import create_app

logger = logging.getLogger(__name__)

BACKLOG = 2048
ADMIN_SETTING = "ADMIN_"
ADMIN_GRACE_S = 2
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Server(uvicorn.Server):
    """uvicorn, except that a signal makes /readyz say 503 at once and the listener closes after a delay.

    Closing means: no new connections, and requests in flight finish. A second signal skips the delay; SIGINT
    while closing breaks off.
    """

    def __init__(self, config: uvicorn.Config, service: Service, delay_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay_s = delay_s
        self._leaving = False
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT; unlike uvicorn's own, does not raise the signal again afterwards."""
        self._service.stop_accepting()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        elif self._leaving or not self._delay_s:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay_s, self.leave)
        self._leaving = True

    def leave(self) -> None:
        """Close the listener and let requests in flight finish."""
        self.should_exit = True


class AdminServer(uvicorn.Server):
    """uvicorn, except that signals are the public server's; it is told to leave when that has left."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, setting: str = "") -> socket.socket:
    """Return a listening socket.

    Args:
        setting: `ADMIN_` if the address is the admin port's.

    Raises:
        MissingDependency: the port is taken, or the address is not this machine's.
    """
    flag = "--" + setting.lower().replace("_", "-")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle off (40 ms on kept connections) only if the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise MissingDependency(
                f"Port {port} on {host} is taken by another process.",
                hint=f"choose another with CAT_SERVE_{setting}PORT (or {flag}port)",
            ) from error
        raise MissingDependency(
            f"Cannot listen on {host} port {port}: {error.strerror}.",
            hint=f"set CAT_SERVE_{setting}HOST and CAT_SERVE_{setting}PORT (or {flag}host and {flag}port)",
        ) from error
    return listener


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
    if isinstance(failure, CatServeError):
        raise failure
    if failure is not None:
        raise CatServeError("The models could not be loaded; the log says why.") from failure


async def _serve(
    settings: Settings, app: FastAPI, listener: socket.socket, admin_listener: socket.socket | None
) -> Exception | None:
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # `Observed` writes that line
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )
    server = Server(config, service, settings.shutdown_delay_s)
    async with _admin(settings, service, admin_listener):
        serving = asyncio.create_task(server.serve([listener]))
        settled = asyncio.create_task(service.settled.wait())
        await asyncio.wait([serving, settled], return_when=asyncio.FIRST_COMPLETED)
        if service.phase is Phase.FAILED:
            server.leave()
        elif service.phase is Phase.READY:
            announce(banner(listener, service), settings)
        elif service.phase is Phase.UNAVAILABLE:
            announce(f"waiting: {service.reason}", settings)
        await serving
        settled.cancel()
    return service.failure


@contextlib.asynccontextmanager
async def _admin(
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


def announce(text: str, settings: Settings) -> None:
    """Tell the person at the terminal, whatever the log level; where all lines are JSON, this is one, too."""
    if settings.log_format == "json":
        logger.info(text)
    else:
        print(text, file=sys.stderr, flush=True)


def banner(listener: socket.socket, service: Service) -> str:
    """Return what a person at the terminal wants to know: the address, and a line to paste."""
    address = address_of(listener)
    model = service.model(None)
    last = len(model.classes) - 1
    return (
        f"{model.label} is ready on {address} (documentation: {address}/docs)\n"
        f"  curl -X POST '{address}/generate?class={min(7, last)}&seed=1' --output image.png"
    )


def address_of(listener: socket.socket) -> str:
    """Return where a browser on this machine finds a listener."""
    host, port = listener.getsockname()[:2]
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
