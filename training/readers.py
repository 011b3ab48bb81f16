"""Read many photographs with several processes; a broken one is a reason, not an exception."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cat_serve.errors import DataError
from training.images import decode

MAX_WORKERS = 8
CHUNK = 16  # photographs that a worker reads at a time: 3 MB at 256 px


@dataclass(frozen=True)
class Photograph:
    """What became of one file.

    Attributes:
        pixels: uint8 [S, S, 3]; None if the file is broken.
        sha256: of the file's bytes; empty where they could not be read.
        reason: why it is broken.
    """

    pixels: np.ndarray | None
    sha256: bytes = b""
    reason: str = ""


class Readable(Protocol):
    """Where the bytes of a photograph are: a `Path`, or a `Piece`."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Piece:
    """A part of a file: a photograph inside a tar."""

    path: Path
    offset_bytes: int
    size_bytes: int

    def read_bytes(self) -> bytes:
        """Read the part.

        Raises:
            OSError: no such file, or it ends too early.
        """
        with self.path.open("rb") as stream:
            stream.seek(self.offset_bytes)
            data = stream.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.path.name} ends before it")
        return data


def default_workers() -> int:
    """Return how many processes read photographs unless told: one per core, eight at most."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def read_photograph(place: Readable, size_px: int) -> Photograph:
    """Read one file; whatever is wrong with it ends up in `reason`."""
    try:
        data = place.read_bytes()
    except OSError as error:
        return Photograph(None, reason=error.strerror or str(error))
    sha256 = hashlib.sha256(data).digest()
    try:
        return Photograph(decode(data, size_px), sha256)
    except DataError as error:
        return Photograph(None, sha256, error.message)


def read_chunk(places: Sequence[Readable], size_px: int) -> list[Photograph]:
    """Read some files, in order."""
    return [read_photograph(place, size_px) for place in places]


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    warnings.simplefilter("ignore")  # Pillow's about odd metadata, one per file
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone: killed, it ends no workers, and they would wait for work for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


class Readers:
    """A pool of processes that read photographs in order, a few chunks ahead of whoever takes them.

    Args:
        workers: processes; 0 reads in this one.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def read(self, places: Sequence[Readable], size_px: int) -> Iterator[Photograph]:
        """Yield one `Photograph` for each place.

        Raises:
            DataError: a worker was killed (usually for memory).
        """
        chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
        if not self.workers:
            for chunk in chunks:
                yield from read_chunk(chunk, size_px)
            return
        ahead: deque[Future[list[Photograph]]] = deque()
        try:
            for chunk in chunks:
                ahead.append(self._started().submit(read_chunk, chunk, size_px))
                if len(ahead) > 2 * self.workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "A process that reads photographs was killed, perhaps for want of memory.",
                hint="give fewer --workers; the same command goes on from where it was",
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:  # spawned: torch's threads do not survive a fork
            self._pool = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        return self._pool

    def close(self) -> None:
        """End the processes, unread work included."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
