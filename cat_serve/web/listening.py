"""The sockets of the server, and what is said about them; nothing of FastAPI is needed for it."""

from __future__ import annotations

import errno
import logging
import socket
import sys

from cat_serve.errors import MissingDependency
from cat_serve.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 2048
ADMIN_SETTING = "ADMIN_"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


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


def address_of(listener: socket.socket) -> str:
    """Return where a browser on this machine finds a listener."""
    host, port = listener.getsockname()[:2]
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(text: str, settings: Settings) -> None:
    """Tell the person at the terminal, whatever the log level; where all lines are JSON, this is one, too."""
    if settings.log_format == "json":
        logger.info(text)
    else:
        print(text, file=sys.stderr, flush=True)


def banner(address: str, label: str, classes: int) -> str:
    """Return what a person at the terminal wants to know: the address, and a line to paste.

    Args:
        label: name@version of the default model, which has so many `classes`.
    """
    return (
        f"{label} is ready on {address} (documentation: {address}/docs)\n"
        f"  curl -X POST '{address}/generate?class={min(7, classes - 1)}&seed=1' --output image.png"
    )
