"""Triton servers that die, stall, lie about their version or leave, under load: who notices, and who comes back.

With two servers and a fault of one, every request is answered with its right image. With no server left, requests are
told so: 503, or 504 if the server was silent, or 502 if it answered wrongly. Afterwards everything is as before.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos.load import Tally, asking
from benchmarks.chaos.results import Promise, Result, at_most, none_of
from benchmarks.chaos.servers import Server, running
from benchmarks.chaos.soak import errors_in
from benchmarks.chaos.traffic import OVER_TRITON, Maker
from benchmarks.chaos.triton import OF_ALL, OF_ONE, Fault, flags_for, victims

RECOVER_S = 15.0  # an endpoint that is down is looked at every 5 s at the longest
CALM_S, CALM_MOST = 1.0, 30  # afterwards so often, until there were images

Digests = dict[tuple[str, str], str]


class Load(NamedTuple):
    """What so many clients ask for."""

    clients: int
    mix: Mapping[Maker, int]


LOAD = Load(6, OVER_TRITON)


@dataclass(frozen=True)
class Survived:
    """What a fault did.

    Attributes:
        recovered_s: how long after its end the service was ready; None: it was not.
        images_after: answers with images once it was over.
        refused: answers that said why there was no image.
    """

    fault: str
    tally: Tally
    recovered_s: float | None
    refused: int
    images_after: int


async def survive(
    server: Server,
    name: str,
    cause: Callable[[], object],
    excused: frozenset[int],
    count: int,
    digests: Digests,
    load: Load = LOAD,
) -> Survived:
    """Cause one fault under load, and ask on until the service is ready again and for a moment longer.

    Args:
        cause: blocks until the fault is over.
        excused: what requests may be told meanwhile.
        count: of Triton servers.
        digests: what equal requests were answered with before.
    """
    during, after = Tally(excused, digests=digests), Tally(digests=digests)
    async with asking(server.url, load.mix, during, load.clients, seed=len(digests)):
        await asyncio.sleep(CALM_S)
        await asyncio.to_thread(cause)
        ended_s = time.perf_counter()
        ready = await _ready_again(server, count)
    recovered_s = time.perf_counter() - ended_s if ready else None
    async with asking(server.url, load.mix, after, load.clients, seed=len(digests)):
        for _ in range(CALM_MOST):
            await asyncio.sleep(CALM_S)
            if after.statuses[200] >= load.clients:
                break
    refused = sum(count for status, count in during.statuses.items() if status in excused)
    return Survived(name, _joined(during, after), recovered_s, refused, after.statuses[200])


async def _ready_again(server: Server, count: int) -> bool:
    """Wait until every server is in use again."""
    ends_s = time.monotonic() + RECOVER_S
    while time.monotonic() < ends_s:
        ready = await asyncio.to_thread(endpoints_ready, server)
        if ready == count:
            return True
        await asyncio.sleep(0.1)
    return False


def endpoints_ready(server: Server) -> int:
    """Return how many Triton servers get calls, as /metrics tells."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(line.startswith("cat_serve_engine_ready{") and line.endswith(" 1.0") for line in lines)  # fmt: skip


def _joined(during: Tally, after: Tally) -> Tally:
    joined = Tally(kinds=during.kinds + after.kinds, statuses=during.statuses + after.statuses)
    joined.lost = [*during.lost, *(f"afterwards: {text}" for text in after.lost)]
    joined.wrong_bytes = [*during.wrong_bytes, *after.wrong_bytes]
    return joined


async def faults(count: int, rounds: int, only: Sequence[str] = ()) -> Result:
    """Cause every fault so many times, over `count` servers.

    Args:
        only: names of faults; by default all.
    """
    plan: Mapping[str, Fault] = OF_ONE if count == 1 else {**OF_ONE, **OF_ALL}
    chosen = {name: fault for name, fault in plan.items() if not only or name in only}
    began_s = time.perf_counter()
    survived: list[Survived] = []
    digests: Digests = {}
    with tempfile.TemporaryDirectory(prefix="cat-serve-chaos-") as folder, victims(count, Path(folder)) as made, \
            running(*flags_for(made)) as server:  # fmt: skip
        for _ in range(rounds):
            for name, fault in chosen.items():
                excused = fault.told if count == 1 or name in OF_ALL else frozenset()
                cause = partial(fault.cause, made)
                survived.append(await survive(server, name, cause, excused, count, digests))
                made.reverse()  # the next one is another server's
        code, log = server.terminate(), server.log
    servers = "1 Triton server" if count == 1 else f"{count} Triton servers"
    return found(f"faults of {servers}", survived, code, log, time.perf_counter() - began_s)


def found(
    what: str,
    survived: list[Survived],
    code: int,
    log: str,
    seconds: float,
    load: Load = LOAD,
    *others: Promise,
) -> Result:
    """Return what a row of faults did to the service.

    Args:
        code: with which it left.
        others: promises besides.
    """
    lost = [f"{s.fault}: {text}" for s in survived for text in s.tally.lost]
    wrong = [f"{s.fault}: {text}" for s in survived for text in s.tally.wrong_bytes]
    back = [s.recovered_s for s in survived if s.recovered_s is not None]
    requests = sum(s.tally.requests for s in survived)
    promises: tuple[Promise, ...] = (
        none_of("requests without an answer that the contract allows", lost),
        none_of("images that differ from those before the fault", wrong),
        none_of("faults after which the service did not come back", [s.fault for s in survived if s.recovered_s is None]),
        at_most("time to come back, longest", max(back, default=float("nan")), RECOVER_S, "s"),
        none_of("faults after which there were no images", [s.fault for s in survived if not s.images_after]),
        none_of("errors in the log", errors_in(log)),
        at_most("exit code after SIGTERM", abs(code), 0),
        *others,
    )  # fmt: skip
    return Result(
        what,
        promises,
        seconds,
        requests,
        len(lost) + len(wrong),
        faults=len(back),
        load=f"{requests / seconds:.0f} requests/s, {load.clients} clients",
        figures={
            "faults": [
                {"fault": s.fault, "requests": s.tally.requests, "told why not": s.refused,
                 "statuses": {str(k): v for k, v in s.tally.statuses.items()},
                 "recovered_s": s.recovered_s and round(s.recovered_s, 2)}
                for s in survived
            ]
        },
    )  # fmt: skip
