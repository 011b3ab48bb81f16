"""Messages between processes: what is written can be read again, and what is no message is refused at once."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cat_serve.errors import BackendError
from cat_serve.workers import frames
from cat_serve.workers.channel import Channel
from cat_serve.workers.frames import MAGIC, MAX_HEADER_BYTES, PREFIX, Message

pytestmark = pytest.mark.anyio

WAIT_S = 20

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FACTS = st.dictionaries(st.text().filter(lambda name: name != "arrays"), JSON, max_size=4)
ARRAYS = st.lists(
    npst.arrays(
        st.sampled_from(sorted(frames.DTYPES)),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=3,
)


class Bytes:
    """A source that ends."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def fill(self, buffer: memoryview) -> bool:
        got, self.data = self.data[: len(buffer)], self.data[len(buffer) :]
        if 0 < len(got) < len(buffer):
            raise BackendError("cut")
        buffer[: len(got)] = got
        return bool(got)


def written(message: Message) -> bytes:
    return b"".join(frames.encoded(message))


def read(data: bytes, **limits: int) -> Message | None:
    return asyncio.run(frames.read(Bytes(data), **limits))


def same(a: Message | None, b: Message) -> bool:
    return (
        a is not None
        and a.facts == b.facts
        and len(a.arrays) == len(b.arrays)
        and all(
            x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
            for x, y in zip(a.arrays, b.arrays, strict=True)
        )
    )


@settings(max_examples=60, deadline=None)
@given(FACTS, ARRAYS)
def test_message_comes_out_as_it_went_in(facts: dict[str, Any], arrays: list[np.ndarray]) -> None:
    message = Message(facts, tuple(arrays))
    assert same(read(written(message)), message)


@settings(max_examples=60, deadline=None)
@given(FACTS, ARRAYS, st.data())
def test_message_that_is_cut_is_an_error(facts: Any, arrays: Any, data: st.DataObject) -> None:
    whole = written(Message(facts, tuple(arrays)))
    kept = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(BackendError):
        read(whole[:kept])


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    with pytest.raises(BackendError):
        read(noise)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), st.integers(0, 64)
)
def test_header_that_is_none_is_an_error(header: bytes, body_bytes: int) -> None:
    with pytest.raises(BackendError, match="broken"):
        frames.parsed(header, body_bytes + 1)


@pytest.mark.parametrize(
    "described",
    [
        [["object", [1]]],
        [["uint8", [-4]]],
        [["uint8", [4.0]]],
        [["uint8", 4]],
        [["uint8", [5]]],
        [["uint8", [2]], ["uint8", [1]]],
        {"uint8": [4]},
        4,
    ],
)
def test_arrays_that_do_not_fit_their_length_are_refused(described: object) -> None:
    with pytest.raises(BackendError):
        frames.parsed(json.dumps({"arrays": described}).encode(), 4)


@pytest.mark.parametrize(
    ("header_bytes", "array_bytes"), [(MAX_HEADER_BYTES + 1, 0), (2, 101), (2, 2**64 - 1)]
)
def test_lengths_beyond_the_limit_are_refused_before_there_is_room(
    header_bytes: int, array_bytes: int
) -> None:
    prefix = PREFIX.pack(MAGIC, header_bytes, array_bytes)
    with pytest.raises(BackendError, match=str(array_bytes)):
        read(prefix, max_array_bytes=100)


def test_end_between_messages_is_no_error() -> None:
    assert read(b"") is None


def test_pixels_are_sent_from_where_they_lie() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    sent = frames.encoded(Message({}, (pixels,)))[1]
    assert np.shares_memory(np.frombuffer(sent, np.uint8), pixels)


async def exchanged(messages: list[Message]) -> list[Message | None]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender, receiver = Channel(ours), Channel(theirs)
    for message in messages:
        sender.send(message)
    got = []
    async with asyncio.timeout(WAIT_S):
        for _ in messages:
            got.append(await receiver.receive())
        assert not sender.behind
        await sender.close()
        assert await receiver.receive() is None
        await receiver.close()
    return got


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=6))
def test_messages_larger_than_the_socket_takes_keep_their_order(sizes: list[int]) -> None:
    messages = [
        Message({"number": number}, (np.full(size, number, np.uint8),))
        for number, size in enumerate(sizes)
    ]
    got = asyncio.run(exchanged(messages))
    assert all(same(a, b) for a, b in zip(got, messages, strict=True))


@pytest.mark.parametrize("kept", [3, 20, 40])
async def test_connection_that_breaks_inside_a_message_is_told(
    kept: int, anyio_backend: str
) -> None:
    ours, theirs = socket.socketpair()
    receiver = Channel(theirs)
    ours.sendall(written(Message({"a": 1}, (np.zeros(64, np.uint8),)))[:kept])
    ours.close()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BackendError):
            await receiver.receive()
    await receiver.close()


async def test_sending_to_somebody_who_left_neither_raises_nor_waits(anyio_backend: str) -> None:
    ours, theirs = socket.socketpair()
    sender = Channel(ours)
    theirs.close()
    for _ in range(3):
        sender.send(Message({}, (np.zeros(300_000, np.uint8),)))
    async with asyncio.timeout(WAIT_S):
        assert await sender.receive() is None
        await sender.close()
    assert not sender.behind
