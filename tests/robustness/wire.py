"""Bytes over a socket: what no HTTP client lets one send, and what comes back, read as strictly as can be."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import h11

WAIT_S = 15.0
AT_ONCE_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


@dataclass(frozen=True)
class Answer:
    """One answer; `informational` are the statuses before it, such as 100."""

    status: int
    headers: dict[str, str]
    body: bytes
    informational: tuple[int, ...] = ()


@contextmanager
def connection(port: int, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """Open a connection to this machine.

    Args:
        receive_bytes: room for what arrives and was not read.
    """
    with socket.socket() as opened:
        if receive_bytes is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        opened.settimeout(WAIT_S)
        opened.connect(("127.0.0.1", port))
        yield opened


def send(opened: socket.socket, data: bytes) -> bool:
    """Send; say whether the server took all of it before it closed."""
    try:
        opened.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def exchange(port: int, data: bytes, method: str = "GET", finish: bool = False) -> list[Answer]:
    """Send bytes on a new connection and return what is answered until the server closes, or waits for more.

    Args:
        finish: say that nothing more will be sent.
    """
    with connection(port) as opened:
        send(opened, data)
        if finish:
            opened.shutdown(socket.SHUT_WR)
        return list(answers(opened, method))


def answers(opened: socket.socket, method: str = "GET", most: int = 1) -> Iterator[Answer]:
    """Yield answers, at most so many, until the connection ends; h11 refuses what is no HTTP."""
    reader = Reader(opened)
    for _ in range(most):
        answer = reader.next(method)
        if answer is None:
            return
        yield answer


class Reader:
    """Reads answers that lie one behind the other."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._left = b""

    def next(self, method: str = "GET") -> Answer | None:
        """Return the next answer; None if the connection ended before it began."""
        parser = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target="/", headers=[("host", "test")])
        parser.send(request)
        parser.send(h11.EndOfMessage())
        status, headers, body, informational = 0, {}, b"", []
        parser.receive_data(self._left) if self._left else None
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = self._receive()
                if not data and not status:
                    return None
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {n.decode(): v.decode("latin-1") for n, v in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                self._left = parser.trailing_data[0]
                return Answer(status, headers, body, tuple(informational))

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(AT_ONCE_BYTES)
        except ConnectionResetError:
            return b""


def ended(opened: socket.socket) -> bool:
    """Wait until the server closes; say whether it did without another byte."""
    try:
        return opened.recv(1) == b""
    except ConnectionResetError:
        return True


def request(
    path: str | bytes = "/healthz",
    *headers: str | bytes,
    method: str = "GET",
    body: bytes | None = None,
) -> bytes:
    """Return a request; with a body also its type and length."""
    target = path if isinstance(path, bytes) else path.encode("latin-1")
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: test"]
    lines += [each if isinstance(each, bytes) else each.encode("latin-1") for each in headers]
    if body is not None:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", body or b""])


def chunked(*chunks: bytes) -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (*chunks, b""))
