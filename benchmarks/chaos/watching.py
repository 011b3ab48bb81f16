"""What a server process holds while it works: memory, open files, threads, asyncio tasks."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import aiohttp

from benchmarks.chaos.servers import Server

_TASKS = re.compile(r"^cat_serve_tasks ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One look at a server; `requests` is how many the clients have finished by then."""

    at_s: float
    requests: int
    rss_bytes: int
    files: int
    threads: int
    tasks: int


async def look(server: Server, client: aiohttp.ClientSession, requests: int) -> Sample:
    """Look at a server, at its asyncio tasks through /metrics.

    Raises:
        ValueError: it does not tell.
    """
    async with client.get(f"{server.url}/metrics") as answer:
        found = _TASKS.search(await answer.text())
    if found is None:
        raise ValueError("/metrics has no cat_serve_tasks")
    process = server.watched
    with process.oneshot():
        return Sample(
            time.perf_counter(),
            requests,
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            int(float(found[1])),
        )


@asynccontextmanager
async def watching(
    server: Server, requests: Callable[[], int], every_s: float
) -> AsyncIterator[list[Sample]]:
    """Look at a server again and again while the block runs; the samples so far are in the list."""
    samples: list[Sample] = []

    async def look_on(client: aiohttp.ClientSession) -> None:
        while True:
            samples.append(await look(server, client, requests()))
            await asyncio.sleep(every_s)

    async with aiohttp.ClientSession() as client:
        looking = asyncio.create_task(look_on(client))
        try:
            yield samples
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
