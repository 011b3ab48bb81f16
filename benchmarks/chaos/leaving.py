"""SIGTERM under load, again and again: whatever was asked before it is answered, and nothing is answered by halves."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from benchmarks.chaos.load import Answer, send, session
from benchmarks.chaos.results import Promise, Result, at_least, at_most, none_of
from benchmarks.chaos.servers import Server, running
from benchmarks.chaos.soak import errors_in
from benchmarks.chaos.traffic import GOOD_ONLY, Ask, Maker, drawn, large

CLIENTS = 10
LARGE = 2  # clients that ask for 64 images at a time
EXIT_S = 30.0
LEAD_S = 0.02  # what was sent so long before the signal was there before it


@dataclass
class Departure:
    """What became of every request around one SIGTERM.

    Attributes:
        in_flight: sent before the signal, and not answered before it.
        after: sent after it.
    """

    signal_s: float
    code: int
    leave_s: float
    log: str
    answers: list[Answer] = field(default_factory=list)

    @property
    def in_flight(self) -> list[Answer]:
        return [
            a
            for a in self.answers
            if a.sent_s <= self.signal_s - LEAD_S and a.ended_s > self.signal_s
        ]

    @property
    def after(self) -> list[Answer]:
        return [a for a in self.answers if a.sent_s > self.signal_s - LEAD_S]

    @property
    def failed(self) -> list[str]:
        """Requests that the promise was broken to: in flight, or answered by halves, or answered wrongly."""
        early = [a for a in self.answers if a.sent_s <= self.signal_s - LEAD_S and not a.right]
        late = [a for a in self.after if not a.right and (a.begun or a.status is not None)]
        return [f"{a.ask.path}: {a.status or a.error}" for a in [*early, *late]]


async def depart(server: Server, mix: Mapping[Maker, int], lead_s: float, seed: int) -> Departure:
    """Load a server, send SIGTERM after `lead_s`, and go on until it takes no more connections."""
    answers: list[Answer] = []
    async with session() as client:
        await send(client, server.url, Ask("first", "POST", "/generate?class=1"))
        clients = [
            asyncio.create_task(_until_refused(client, server.url, _mix_of(i, mix), answers, f"{seed}-{i}"))
            for i in range(CLIENTS)
        ]  # fmt: skip
        await asyncio.sleep(lead_s)
        signal_s = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(server.process.wait, EXIT_S)
        leave_s = time.perf_counter() - signal_s
        await asyncio.gather(*clients)
    return Departure(signal_s, code, leave_s, server.log, answers)


def _mix_of(client: int, mix: Mapping[Maker, int]) -> Mapping[Maker, int]:
    return {large: 1} if client < LARGE else mix


async def _until_refused(
    client: aiohttp.ClientSession,
    base: str,
    mix: Mapping[Maker, int],
    answers: list[Answer],
    seed: str,
) -> None:
    """Ask one after another on a kept connection until there is no answer."""
    rng = random.Random(seed)
    while True:
        answers.append(await send(client, base, drawn(mix, rng)))
        if answers[-1].status is None:
            return


async def leaving(times: int, name: str = "SIGTERM under load", *flags: str) -> Result:
    """Start a server, load it, and end it, so many times.

    Args:
        flags: of `cat-serve serve`, for example for Triton.
    """
    rng = random.Random(0)
    began_s = time.perf_counter()
    departures = []
    for number in range(times):
        with running("--threads", "1", "--log-level", "warning", *flags) as server:
            departures.append(await depart(server, GOOD_ONLY, rng.uniform(0.6, 1.6), number))
    return departed(name, departures, time.perf_counter() - began_s)


def departed(name: str, departures: list[Departure], seconds: float) -> Result:
    """Put together what became of several departures."""
    failed = [text for departure in departures for text in departure.failed]
    in_flight = [len(departure.in_flight) for departure in departures]
    requests = sum(len(departure.answers) for departure in departures)
    promises: tuple[Promise, ...] = (
        at_least("requests in flight at each signal, fewest", min(in_flight), CLIENTS // 2),
        none_of("requests that failed", failed),
        none_of("exit codes other than 0", [str(d.code) for d in departures if d.code]),
        none_of("errors in the log", [error for d in departures for error in errors_in(d.log)]),
        at_most("time to leave, longest", max(d.leave_s for d in departures), EXIT_S, "s"),
    )
    return Result(
        name,
        promises,
        seconds,
        requests,
        len(failed),
        faults=len(departures),
        load=f"{CLIENTS} clients, {sum(in_flight)} requests in flight at {len(departures)} signals",
        figures={
            "in_flight": in_flight,
            "after_the_signal": [len(d.after) for d in departures],
            "answered_after_the_signal": [sum(a.right for a in d.after) for d in departures],
            "leave_s": [round(d.leave_s, 2) for d in departures],
        },
    )
