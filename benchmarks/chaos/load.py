"""Clients that keep their connections and ask again and again, and a tally of what they got."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

from benchmarks.chaos.traffic import Ask, Maker, drawn

TIMEOUT_S = 60.0
GONE = 0
BUSY = frozenset({429, 503})
BUSY_S = 0.1


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        status: 0 if the client left by itself; None if the connection failed.
        begun: whether an answer had begun when the connection failed.
    """

    ask: Ask
    sent_s: float
    ended_s: float
    status: int | None
    digest: str = ""
    error: str = ""
    begun: bool = False

    @property
    def right(self) -> bool:
        return self.status in self.ask.statuses


@dataclass
class Tally:
    """All answers of a load, and the wrong ones in words.

    Attributes:
        excused: statuses that are right, too, while something is broken on purpose.
    """

    excused: frozenset[int] = frozenset()
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int | None] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong_bytes: list[str] = field(default_factory=list)
    digests: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())

    def add(self, answer: Answer) -> None:
        """Count an answer, and compare it with earlier ones to the same request."""
        ask = answer.ask
        self.kinds[ask.kind] += 1
        self.statuses[answer.status] += 1
        if not answer.right and answer.status not in self.excused:
            self.lost.append(f"{ask.method} {ask.path}: {answer.status or answer.error}")
        if ask.same and answer.status == 200:
            first = self.digests.setdefault((ask.method, ask.path), answer.digest)
            if first != answer.digest:
                self.wrong_bytes.append(f"{ask.method} {ask.path}")


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client that keeps connections, as many as there are requests at a time, and repeats nothing."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        # or a GET is sent again, unseen, when a kept connection turns out to be closed
        client._retry_connection = False
        yield client


async def send(client: aiohttp.ClientSession, base: str, ask: Ask) -> Answer:
    """Send one request and read the whole answer."""
    sent_s = time.perf_counter()
    begun, status, error, digest = False, None, "", ""
    body = ask.body if ask.pieces_s is None else in_pieces(ask.body or b"", ask.pieces_s)
    try:
        async with asyncio.timeout(ask.leave_after_s):
            async with client.request(
                ask.method, base + ask.path, headers=ask.headers, data=body
            ) as response:
                begun = True
                digest = hashlib.sha256(await response.read()).hexdigest()
                status = response.status
    except TimeoutError:
        status, error = (None, "timeout") if ask.leave_after_s is None else (GONE, "")
    except (aiohttp.ClientError, OSError) as failed:
        error = f"{type(failed).__name__}: {failed}"
    return Answer(ask, sent_s, time.perf_counter(), status, digest, error, begun)


async def in_pieces(body: bytes, pause_s: float) -> AsyncIterator[bytes]:
    """Yield a body in four pieces."""
    size = max(1, len(body) // 4)
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(pause_s)


async def keep_asking(
    base: str,
    mix: Mapping[Maker, int],
    tally: Tally,
    clients: int,
    seconds: float | None = None,
    seed: int = 0,
) -> None:
    """Let so many clients ask one request after another, for a time or until this is cancelled.

    Whoever hears that the server is busy or has no engine waits for a moment, though less than it asks for.
    """
    ends_s = None if seconds is None else time.perf_counter() + seconds

    async def ask_on(client: aiohttp.ClientSession, rng: random.Random) -> None:
        while ends_s is None or time.perf_counter() < ends_s:
            answer = await send(client, base, drawn(mix, rng))
            tally.add(answer)
            if answer.status in BUSY:
                await asyncio.sleep(BUSY_S)

    async with session() as client, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(ask_on(client, random.Random(f"{seed}-{number}")))


@asynccontextmanager
async def asking(
    base: str, mix: Mapping[Maker, int], tally: Tally, clients: int, seed: int = 0
) -> AsyncIterator[None]:
    """Keep the load up while the block runs; requests under way at its end are not counted."""
    load = asyncio.create_task(keep_asking(base, mix, tally, clients, seed=seed))
    try:
        yield
    finally:
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load
