"""One message between a worker and the engine process: facts as JSON, then arrays as they lie in memory.

    4 bytes   b"CAT1"
    4 bytes   length of the header, big-endian
    8 bytes   length of all arrays together, big-endian
    header    a JSON object; its member "arrays" says dtype and shape of each
    arrays    one after another, in C order and in the byte order of this machine

Nothing in it is executed, and no length is believed beyond a limit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cat_serve.errors import BackendError

MAGIC = b"CAT1"
PREFIX = struct.Struct("!4sIQ")
MAX_HEADER_BYTES = 64 * 2**20  # the manifests of all models are in one
MAX_ARRAY_BYTES = 2**34
DTYPES = {dtype: np.dtype(dtype) for dtype in ("uint8", "bool", "int64", "float32")}
HINT = "worker and engine process must be of one installation; the request may be sent again"


@dataclass(frozen=True, eq=False)
class Message:
    """Facts that JSON can hold, and arrays of `DTYPES`."""

    facts: dict[str, Any]
    arrays: tuple[np.ndarray, ...] = ()


class Source(Protocol):
    """Where messages come from."""

    async def fill(self, buffer: memoryview) -> bool:
        """Fill all of `buffer`, of bytes; False if there is nothing more, not even the first.

        Raises:
            BackendError: the source ended in between.
        """


def encoded(message: Message) -> list[memoryview]:
    """Return the bytes of a message as buffers; those of the arrays are their own memory, not copies of it."""
    arrays = [np.ascontiguousarray(array) for array in message.arrays]
    described = [[str(array.dtype), array.shape] for array in message.arrays]
    header = json.dumps({**message.facts, "arrays": described}).encode()
    body_bytes = sum(array.nbytes for array in arrays)
    head = PREFIX.pack(MAGIC, len(header), body_bytes) + header
    return [memoryview(head), *(bytes_of(array) for array in arrays if array.nbytes)]


async def read(source: Source, max_array_bytes: int = MAX_ARRAY_BYTES) -> Message | None:
    """Read the next message; None if the source is at its end.

    Raises:
        BackendError: what came is no message, is longer than it may be, or ends too early.
    """
    prefix = bytearray(PREFIX.size)
    if not await source.fill(memoryview(prefix)):
        return None
    header_bytes, body_bytes = lengths(bytes(prefix), max_array_bytes)
    header = bytearray(header_bytes)
    await _require(source, memoryview(header))
    facts, arrays = parsed(bytes(header), body_bytes)
    for array in arrays:
        if array.nbytes:
            await _require(source, bytes_of(array))
    return Message(facts, tuple(arrays))


def lengths(prefix: bytes, max_array_bytes: int = MAX_ARRAY_BYTES) -> tuple[int, int]:
    """Return the bytes of header and arrays.

    Raises:
        BackendError: it is no message of this version, or too long.
    """
    magic, header_bytes, body_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise _broken(f"it begins with {magic!r}, not with {MAGIC!r}")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > max_array_bytes:
        raise _broken(f"it would have {header_bytes} and {body_bytes} bytes")
    return header_bytes, body_bytes


def parsed(header: bytes, body_bytes: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the facts, and arrays with room for what follows.

    Raises:
        BackendError: the header is no JSON object, or its arrays do not have `body_bytes`.
    """
    try:
        facts = json.loads(header)
        specs = [_spec(*described) for described in facts.pop("arrays")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _broken("its header cannot be read") from error
    if sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs) != body_bytes:
        raise _broken("its arrays do not have the length that it says")
    return facts, [np.empty(shape, dtype) for dtype, shape in specs]


def bytes_of(array: np.ndarray) -> memoryview:
    """Return the memory of a contiguous array that is not empty, as bytes."""
    return array.reshape(-1).view(np.uint8).data


def _spec(dtype: str, shape: Sequence[int]) -> tuple[np.dtype, tuple[int, ...]]:
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("that is no shape")
    return DTYPES[dtype], tuple(shape)


async def _require(source: Source, buffer: memoryview) -> None:
    if len(buffer) and not await source.fill(buffer):
        raise _broken("it ends before its arrays do")


def _broken(reason: str) -> BackendError:
    return BackendError(f"A message between processes is broken: {reason}.", hint=HINT)
