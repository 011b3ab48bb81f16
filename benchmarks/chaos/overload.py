"""Ten times as many requests as can be served: those that are taken wait no longer, the others hear so at once.

First the queue is just full: as many requests at the same time as it holds, the next as soon as one is answered. Then
requests come at random, ten times as many as were served, whatever becomes of them. Both are sent by a process of its
own, which says what it cost and how late it was.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.heavy_model import heavy_repository
from benchmarks.chaos.measures import percentile
from benchmarks.chaos.results import Promise, Result, at_least, at_most
from benchmarks.chaos.servers import ROOT, running

TIMES = 10
QUEUE = 8  # images; a request here is one
STRETCH = 1.5
REFUSED_MS = 50.0
IMAGE_MS = 100.0
FLAGS = (
    "--threads", "1", "--concurrency", "1", "--max-batch", "2", "--log-level", "warning",
    "--max-queued-images", str(QUEUE), "--max-images-per-request", "4",
)  # fmt: skip
ACCEPTED, TOO_MANY = 200, 429


@dataclass(frozen=True)
class Arrivals:
    """What the load generator wrote down; times in ms, counted from when a request was due."""

    rows: list[list[float]]
    wall_s: float
    cpu_s: float
    probes_s: tuple[float, ...] = ()

    def latencies_ms(self, status: int) -> list[float]:
        return [1e3 * (ended - due) for due, _, ended, got in self.rows if got == status]

    def answered_ms(self, status: int) -> list[float]:
        """Return the same from when requests were sent: without what the generator was late by."""
        return [1e3 * (ended - sent) for _, sent, ended, got in self.rows if got == status]

    @property
    def late_ms(self) -> list[float]:
        """How long after they were due requests were sent: what the generator itself adds."""
        return [1e3 * (sent - due) for due, sent, _, _ in self.rows]

    @property
    def others(self) -> int:
        """Return how many got neither an image nor a 429."""
        return sum(row[3] not in (ACCEPTED, TOO_MANY) for row in self.rows)


async def arrivals(url: str, *arguments: str) -> Arrivals:
    """Run the load generator to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.chaos.arrivals", url, *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return Arrivals(found["requests"], found["wall_s"], found["cpu_s"], tuple(found["probes_s"]))


async def overload(seconds: float, folder: Path) -> Result:
    """Measure both, each for half of the time.

    Args:
        folder: where the model is kept.
    """
    repository = await asyncio.to_thread(heavy_repository, folder)
    began_s = time.perf_counter()
    with running("--model-repository", str(repository), *FLAGS) as server:
        alone = await arrivals(server.url, "--seconds", "3", "--outstanding", "1")
        # one is in the engine's hands, two with a batch of two; the rest wait
        full = await arrivals(
            server.url, "--seconds", str(seconds / 2), "--outstanding", str(QUEUE + 1)
        )
        rate = len(full.latencies_ms(ACCEPTED)) / full.wall_s
        flood = await arrivals(
            server.url, "--seconds", str(seconds / 2), "--rate", f"{TIMES * rate:.3f}"
        )
        code = server.terminate()
    sent = [*alone.rows, *full.rows, *flood.rows]
    lost = alone.others + full.others + flood.others
    return Result(
        f"overload, {TIMES} times capacity",
        (*_promises(alone, full, flood, lost), at_most("exit code after SIGTERM", abs(code), 0)),
        time.perf_counter() - began_s,
        len(sent),
        lost,
        load=f"{len(flood.rows) / flood.wall_s:.1f} requests/s, capacity {rate:.2f}/s; "
        f"/healthz meanwhile {1e3 * percentile(flood.probes_s, 0.99):.0f} ms at p99",
        figures=_figures(alone, full, flood),
    )


def _promises(alone: Arrivals, full: Arrivals, flood: Arrivals, lost: int) -> tuple[Promise, ...]:
    base_ms = percentile(full.latencies_ms(ACCEPTED), 0.99)
    accepted_ms = percentile(flood.latencies_ms(ACCEPTED), 0.99)
    refused = flood.answered_ms(TOO_MANY)
    return (
        at_least("time of one image alone, median", percentile(alone.latencies_ms(ACCEPTED), 0.5), IMAGE_MS, "ms"),
        at_most("p99 of accepted requests at 10 times, against the queue full at 1 time", accepted_ms / base_ms, STRETCH, "x"),
        at_most("p99 of 429s", percentile(refused, 0.99), REFUSED_MS, "ms"),
        at_least("share of requests refused at 10 times", len(refused) / len(flood.rows), 0.5),
        at_most("requests without an image or a 429", lost, 0),
    )  # fmt: skip


def _figures(alone: Arrivals, full: Arrivals, flood: Arrivals) -> dict[str, Any]:
    return {
        "one_alone_ms": percentile(alone.latencies_ms(ACCEPTED), 0.5),
        "full_p50_p99_ms": [percentile(full.latencies_ms(ACCEPTED), q) for q in (0.5, 0.99)],
        "flood_p50_p99_ms": [percentile(flood.latencies_ms(ACCEPTED), q) for q in (0.5, 0.99)],
        "refused_p50_p99_ms": [percentile(flood.answered_ms(TOO_MANY), q) for q in (0.5, 0.99)],
        "refused_since_due_p99_ms": percentile(flood.latencies_ms(TOO_MANY), 0.99),
        "accepted_and_refused": [len(flood.latencies_ms(status)) for status in (ACCEPTED, TOO_MANY)],
        "healthz_p50_p99_ms": [1e3 * percentile(flood.probes_s, q) for q in (0.5, 0.99)],
        "generator_cpu_share": flood.cpu_s / flood.wall_s,
        "generator_late_p99_ms": percentile(flood.late_ms, 0.99),
    }  # fmt: skip
