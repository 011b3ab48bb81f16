"""What the supervisor owns while it runs, and what goes with it: the socket of the workers, and the signals."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cat_serve.errors import MissingDependency

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_SOCKET_PATH = 100  # of 108 bytes that the kernel takes


@contextlib.contextmanager
def private_socket() -> Iterator[tuple[Path, socket.socket]]:
    """Yield a listening Unix socket in a folder that only this user can enter, and its path.

    Raises:
        MissingDependency: there is no folder for temporary files, or its name is too long.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="cat-serve-"))
    except OSError as error:
        raise MissingDependency(
            "Several workers need a folder for temporary files, and none can be written.",
            hint="set TMPDIR to one, or --workers 1",
        ) from error
    path = folder / "engine"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise MissingDependency(
                f"The folder for temporary files is too deep for a socket: {folder.parent}.",
                hint="set TMPDIR to a shorter one, as /tmp",
            )
        listener.bind(str(path))
        listener.listen()
        yield path, listener
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def signals(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[socket.socket]:
    """Yield a socket from which every signal can be read as a byte, while the block runs."""
    readable, writable = socket.socketpair()
    with readable, writable:
        writable.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
        try:
            yield readable
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
