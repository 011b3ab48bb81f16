"""Send requests to one server and write down when each was due, sent and answered: a process of its own.

    python -m benchmarks.chaos.arrivals http://127.0.0.1:8000 --seconds 10 --rate 50
    python -m benchmarks.chaos.arrivals http://127.0.0.1:8000 --seconds 10 --outstanding 9

With --rate requests come at random (a Poisson process) whatever becomes of those before, and latency counts from the
moment that a request was due. With --outstanding there are always so many, the next as soon as one is answered.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

TIMEOUT_S = 120.0
PROBE_S = 0.5


class Log:
    """All requests so far: [due, sent, answered] in seconds from the start, and the status; 0: the connection failed."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.rows: list[list[float]] = []
        self.probes_s: list[float] = []
        self._url = url
        self._client = client
        self._began_s = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began_s

    async def ask(self, due_s: float, seed: int) -> None:
        sent_s, status = self.now(), 0
        try:
            url = f"{self._url}/generate?class={seed % 10}&seed={seed}&format=jpeg"
            async with self._client.post(url) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        self.rows.append([due_s, sent_s, self.now(), status])

    async def probe(self) -> None:
        """Ask /healthz again and again: how long the least answer takes that this machine can give meanwhile."""
        while True:
            began_s = self.now()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._client.get(f"{self._url}/healthz") as answer:
                    await answer.read()
                self.probes_s.append(self.now() - began_s)
            await asyncio.sleep(PROBE_S)


async def due(rate: float, seconds: float, log: Log, rng: random.Random) -> AsyncIterator[float]:
    """Yield the moments of a Poisson process, each when it has come; those that were missed come at once."""
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        if (wait_s := at_s - log.now()) > 0:
            await asyncio.sleep(wait_s)
        yield at_s


async def send(arguments: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(arguments.seed)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        log = Log(arguments.url, client)
        probing = asyncio.create_task(log.probe())
        async with asyncio.TaskGroup() as group:
            if arguments.rate is not None:
                async for at_s in due(arguments.rate, arguments.seconds, log, rng):
                    group.create_task(log.ask(at_s, rng.randrange(1000)))
            else:
                for _ in range(arguments.outstanding):
                    group.create_task(_again_and_again(log, arguments.seconds, rng))
        wall_s = log.now()
        probing.cancel()
    return {
        "cpu_s": time.process_time(),
        "wall_s": wall_s,
        "requests": log.rows,
        "probes_s": log.probes_s,
    }


async def _again_and_again(log: Log, seconds: float, rng: random.Random) -> None:
    while (now_s := log.now()) < seconds:
        await log.ask(now_s, rng.randrange(1000))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.arrivals", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, help="requests a second")
    how.add_argument("--outstanding", type=int, help="requests at the same time")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: asyncio.run(send(arguments)), extra="dev")


if __name__ == "__main__":
    sys.exit(main())
