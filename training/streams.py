"""Random streams addressed by position, so that a resumed run draws what an uninterrupted one draws.

Nothing here keeps state: the stream for (seed, name, position) is always the same, whatever ran before.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def stream_at(seed: int, name: str, position: int) -> torch.Generator:
    """Return a CPU generator for one purpose at one position (usually an image count)."""
    digest = hashlib.sha256(f"{seed}/{name}/{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=2)  # a batch lies in two epochs at most, unless it is larger than the data
def _order(seed: int, size: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=stream_at(seed, "epoch", epoch))


def shuffled_indices(seed: int, size: int, start_nimg: int, count: int) -> Tensor:
    """Return positions `start_nimg .. start_nimg + count - 1` of an endless shuffled walk over a data set.

    Each epoch visits every item once, in an order of its own.

    Returns:
        int64 [count], values 0..size-1.
    """
    parts = []
    position = start_nimg
    while position < start_nimg + count:
        epoch, offset = divmod(position, size)
        taken = _order(seed, size, epoch)[offset : offset + start_nimg + count - position]
        parts.append(taken)
        position += len(taken)
    return torch.cat(parts)
