"""Latency and throughput of one thing to do, at so many at a time: measured, with the warm-up left out."""

from __future__ import annotations

import itertools
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Does one request of the worker with this number; returns milliseconds by stage, None if it was refused.
Do = Callable[[int], Mapping[str, float] | None]


@dataclass(frozen=True)
class Bounds:
    """When one case ends: whichever comes first. A request that was begun is finished.

    Attributes:
        seconds: no request is begun after that.
        requests: at most so many, of all workers together; None: as many as the seconds allow.
        warm_up: requests of every worker before anything counts.
    """

    seconds: float = 5.0
    requests: int | None = None
    warm_up: int = 3


@dataclass(frozen=True)
class Measured:
    """One case. Percentiles are latencies that were seen (nearest rank); with few requests p99 is the slowest.

    Attributes:
        seconds: from the beginning of the first to the end of the last request.
        refused: requests that were turned away; not in the latencies, nor in the images.
        stages: median milliseconds by stage, where the subject tells them.
    """

    batch: int
    concurrency: int
    requests: int
    refused: int
    seconds: float
    images_per_second: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    stages: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Return it for JSON, rounded to what was measured; a latency that nobody saw is null."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


class Worker:
    """Does one request after another, and keeps what it saw."""

    def __init__(self, do: Do, number: int) -> None:
        self.latencies_ms: list[float] = []
        self.stages: list[Mapping[str, float]] = []
        self.refused = 0
        self._do = do
        self._number = number

    def warm_up(self, requests: int, stop: threading.Event) -> None:
        for _ in range(requests):
            if not stop.is_set():
                self._do(self._number)

    def run(self, may_begin: Callable[[], bool]) -> None:
        while may_begin():
            began_s = time.perf_counter()
            stages = self._do(self._number)
            if stages is None:
                self.refused += 1
                continue
            self.latencies_ms.append(1e3 * (time.perf_counter() - began_s))
            self.stages.append(stages)


def measure(do: Do, batch: int, concurrency: int, bounds: Bounds) -> Measured:
    """Do requests with `concurrency` workers, each beginning its next when it has its answer.

    Args:
        batch: images in one request; for the figures only.

    Raises: what `do` raises; the other workers end after the request that they are at.
    """
    workers = [Worker(do, number) for number in range(concurrency)]
    stop, begun = threading.Event(), itertools.count()

    with ThreadPoolExecutor(concurrency, thread_name_prefix="bench") as pool:
        _together(pool, stop, [(w.warm_up, (bounds.warm_up, stop)) for w in workers])
        began_s = time.perf_counter()

        def may_begin() -> bool:
            over = time.perf_counter() - began_s >= bounds.seconds or stop.is_set()
            return not over and (bounds.requests is None or next(begun) < bounds.requests)

        _together(pool, stop, [(w.run, (may_begin,)) for w in workers])
        seconds = time.perf_counter() - began_s
    return _summary(workers, batch, seconds)


def _together(
    pool: ThreadPoolExecutor,
    stop: threading.Event,
    work: Sequence[tuple[Callable[..., None], tuple[Any, ...]]],
) -> None:
    futures = [pool.submit(call, *arguments) for call, arguments in work]
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        if not all(future.done() for future in futures):
            stop.set()
    for future in done:
        future.result()


def _summary(workers: Sequence[Worker], batch: int, seconds: float) -> Measured:
    latencies = [ms for worker in workers for ms in worker.latencies_ms]
    stages = [each for worker in workers for each in worker.stages]
    told = latencies or [float("nan")]
    median, p95, p99 = np.percentile(told, (50, 95, 99), method="inverted_cdf").tolist()
    return Measured(
        batch=batch,
        concurrency=len(workers),
        requests=len(latencies),
        refused=sum(worker.refused for worker in workers),
        seconds=seconds,
        images_per_second=batch * len(latencies) / seconds,
        median_ms=median,
        p95_ms=p95,
        p99_ms=p99,
        stages={
            name: float(np.median([each[name] for each in stages]))
            for name in (stages[0] if stages else ())
        },
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value


def table(cases: Sequence[Measured]) -> str:
    """Return the cases as an aligned table."""
    stages = list(cases[0].stages) if cases else []
    head = ["batch", "concurrency", "requests", "refused", "median ms", "p95 ms", "p99 ms", "images/s",
            *(f"{name} ms" for name in stages)]  # fmt: skip
    rows = [
        [str(c.batch), str(c.concurrency), str(c.requests), str(c.refused), f"{c.median_ms:.2f}",
         f"{c.p95_ms:.2f}", f"{c.p99_ms:.2f}", f"{c.images_per_second:.1f}",
         *(f"{c.stages.get(name, float('nan')):.2f}" for name in stages)]
        for c in cases
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    )


def machine() -> dict[str, Any]:
    """Return what figures of this machine depend on: its CPU, and how many cores this process may use."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
