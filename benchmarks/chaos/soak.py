"""Mixed load for a long time: nothing is lost, no image differs, and the server holds no more at its end than early on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chaos.load import Tally, keep_asking, send, session
from benchmarks.chaos.measures import Growth, usual_growth
from benchmarks.chaos.results import Promise, Result, at_most, none_of
from benchmarks.chaos.servers import COMMAND_LINE, Server, running
from benchmarks.chaos.traffic import HEAVIEST, MIXED
from benchmarks.chaos.watching import Sample, look, watching

WARM_UP_ROUNDS = 2
WARM_UP_SHARE = 0.5  # of the samples: the allocator takes more until every thread had every kind
# Memory comes and goes by so much without any leak, so that a soak of few requests cannot exclude less for each.
BREATH_BYTES = 8_000_000
LEAST_BYTES = 256.0  # a request; what a long soak must exclude
SAMPLES = 240
SETTLE_S = 20.0
SPARE_FILES, SPARE_TASKS, SPARE_THREADS = 4, 4, 2
FLAGS = ("--threads", "1", "--log-level", "warning")


@dataclass(frozen=True)
class Plan:
    """How a soak goes.

    Attributes:
        command: what Python runs instead of the command line itself.
    """

    seconds: float
    clients: int = 8
    seed: int = 0
    command: Sequence[str] = COMMAND_LINE


async def soak(plan: Plan) -> Result:
    """Run one server under mixed load."""
    with running(*FLAGS, command=plan.command) as server:
        tally = Tally()
        before = await _warmed_up(server, plan.clients)
        began_s = time.perf_counter()
        every_s = max(0.2, plan.seconds / SAMPLES)
        async with watching(server, lambda: tally.requests, every_s) as samples:
            await keep_asking(
                server.url, MIXED, tally, plan.clients, seconds=plan.seconds, seed=plan.seed
            )
        seconds = time.perf_counter() - began_s
        after = await _settled(server, before)
        code, log = server.terminate(), server.log
    promises = (*_kept(tally, code, log), *_bounded(plan, before, samples, after))
    growth = memory_growth(samples)
    return Result(
        "soak, mixed load",
        promises,
        seconds,
        tally.requests,
        len(tally.lost) + len(tally.wrong_bytes),
        load=f"{tally.requests / seconds:.0f} requests/s of {len(tally.kinds)} kinds, {plan.clients} clients",
        memory=f"{growth.value:+.0f} bytes a request ({growth.low:+.0f} to {growth.high:+.0f})",
        figures={
            "kinds": dict(tally.kinds),
            "statuses": {str(status): count for status, count in tally.statuses.items()},
            "rss_mb": [round(sample.rss_bytes / 1e6, 1) for sample in samples],
            "bytes_a_request": [growth.value, growth.low, growth.high],
        },
    )


def memory_growth(samples: Sequence[Sample]) -> Growth:
    """Return how many bytes of memory a request costs for good, after the warm-up.

    Raises:
        ValueError: the soak was too short.
    """
    later = samples[int(WARM_UP_SHARE * len(samples)) :]
    return usual_growth([s.requests for s in later], [s.rss_bytes for s in later])


def growth_limit(samples: Sequence[Sample]) -> float:
    """Return how many bytes a request may cost for good; the more requests, the fewer."""
    later = samples[int(WARM_UP_SHARE * len(samples)) :]
    return max(LEAST_BYTES, BREATH_BYTES / max(1, later[-1].requests - later[0].requests))


async def _warmed_up(server: Server, clients: int) -> Sample:
    """Ask for all that is opened once, and for as much at the same time as there will be; return how it stands then.

    An engine keeps the memory of its largest passes, side by side.
    """
    rng = random.Random(0)
    async with session() as client:
        for _ in range(WARM_UP_ROUNDS):
            for maker in MIXED:
                await send(client, server.url, maker(rng))
            for maker in HEAVIEST:
                together = (send(client, server.url, maker(rng)) for _ in range(clients))
                await asyncio.gather(*together)
    async with session() as client:
        return await look(server, client, 0)


async def _settled(server: Server, before: Sample) -> Sample:
    """Return how a server stands when its clients are gone; it gets some time to close up after them."""
    ends_s = time.monotonic() + SETTLE_S
    async with session() as client:
        while True:
            after = await look(server, client, 0)
            if after.tasks <= before.tasks or time.monotonic() > ends_s:
                return after
            await asyncio.sleep(0.2)


def _kept(tally: Tally, code: int, log: str) -> tuple[Promise, ...]:
    return (
        none_of("requests without their right answer", tally.lost),
        none_of("images that differ from earlier ones of the same request", tally.wrong_bytes),
        none_of("errors in the log", errors_in(log)),
        at_most("exit code after SIGTERM", abs(code), 0),
    )


def errors_in(log: str) -> list[str]:
    """Return what was raised where a log has a traceback: the first line after it that is not indented."""
    found = []
    for part in log.split("Traceback (most recent call last):")[1:]:
        lines = [line for line in part.splitlines() if line and not line.startswith(" ")]
        found.append(lines[0] if lines else "a traceback without an end")
    return found


def _bounded(
    plan: Plan, before: Sample, samples: Sequence[Sample], after: Sample
) -> tuple[Promise, ...]:
    grows = at_most(
        "memory that a request costs for good, upper end of the 96 % interval",
        memory_growth(samples).high,
        growth_limit(samples),
        "bytes",
    )
    most_tasks = before.tasks + 8 * plan.clients
    half = samples[len(samples) // 3 :]
    return (
        grows,
        at_most("asyncio tasks under load", max(s.tasks for s in samples), most_tasks),
        at_most("asyncio tasks afterwards", after.tasks, before.tasks + SPARE_TASKS),
        at_most("open files under load", max(s.files for s in samples), before.files + 3 * plan.clients + SPARE_FILES),
        at_most("open files afterwards", after.files, before.files + SPARE_FILES),
        at_most("threads at the end", after.threads, max(s.threads for s in half[: len(half) // 2]) + SPARE_THREADS),
    )  # fmt: skip
