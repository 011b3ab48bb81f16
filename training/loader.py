"""Batches made ahead of the loop, in threads: which batch it is depends on (seed, images seen) alone.

Threads are enough: copies out of the memory map and `randn` work without Python's lock, and there is nothing to
decode. Photographs for a teacher are decoded by threads of their own (`photographs.FolderPhotographs`).
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

from torch import Tensor

from training.data import Latents
from training.photographs import Photographs
from training.streams import shuffled_indices, stream_at

AHEAD = 3
THREADS = 2


@dataclass(frozen=True)
class Batch:
    """One process's rows of a batch, on the CPU.

    Attributes:
        x_real: latents, float32 [b, C, H, W].
        y: labels, int64 [b].
        photographs: float32 [b, 3, S, S] in -1..1, where a teacher looks at them.
    """

    x_real: Tensor
    y: Tensor
    photographs: Tensor | None = None

    def pinned(self) -> Batch:
        """Return it in page-locked memory, from where a GPU copies while the CPU goes on."""
        seen = None if self.photographs is None else self.photographs.pin_memory()
        return replace(
            self, x_real=self.x_real.pin_memory(), y=self.y.pin_memory(), photographs=seen
        )


class Loader:
    """The batches of an endless shuffled walk; the next ones are made while the loop works on one.

    Args:
        rows: this process's rows of the whole batch; only these are read, and noise is that of the whole batch.
        ahead: batches that are ready or being made beyond the one asked for; 0 makes each when it is asked for.
        threads: how many are made at a time.
        pin: give batches in page-locked memory; for CUDA.
    """

    def __init__(
        self,
        data: Latents,
        seed: int,
        batch_size: int,
        rows: slice = slice(None),
        photographs: Photographs | None = None,
        ahead: int = AHEAD,
        threads: int = THREADS,
        pin: bool = False,
    ) -> None:
        self.data, self.seed, self.batch_size, self.rows = data, seed, batch_size, rows
        self.photographs, self.ahead, self.pin = photographs, ahead, pin
        self._threads = ThreadPoolExecutor(threads, "loader") if ahead else None
        self._made: OrderedDict[int, Future[Batch]] = OrderedDict()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def at(self, nimg: int) -> Batch:
        """Return the batch that begins after `nimg` images.

        Raises:
            DataError: a photograph is not the one that was prepared.
        """
        if self._threads is None:
            return self.make(nimg)
        wanted = [nimg + step * self.batch_size for step in range(self.ahead + 1)]
        for position in self._made.keys() - set(wanted):
            self._made.pop(position).cancel()
        for position in wanted:
            if position not in self._made:
                self._made[position] = self._threads.submit(self.make, position)
        return self._made.pop(nimg).result()

    def make(self, nimg: int) -> Batch:
        """Make the batch that begins after `nimg` images, now and in this thread."""
        index = shuffled_indices(self.seed, len(self.data), nimg, self.batch_size)
        noise = stream_at(self.seed, "posterior", nimg)
        x_real, y = self.data.batch(index, noise, self.rows)
        seen = self.photographs.batch(index[self.rows]) if self.photographs else None
        batch = Batch(x_real, y, seen)
        return batch.pinned() if self.pin else batch

    def close(self) -> None:
        """End the threads; what they made ahead is let go. Batches asked for later are made when asked for."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._made.clear()
