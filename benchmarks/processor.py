"""What a step is set against: the machine, its best rate of matrix products, and where the time of a step goes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MATRIX_SIDE = 1024
MATRIX_OPERATIONS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "attention")


def matrix_peak() -> float:
    """Return the FLOP/s of the best of ten products of two float32 matrices."""
    import torch

    a, b = torch.randn(2, MATRIX_SIDE, MATRIX_SIDE)
    best = float("inf")
    for _ in range(10):
        begin = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - begin)
    return 2 * MATRIX_SIDE**3 / best


def profile(take: Callable[[], object]) -> tuple[float, list[tuple[str, float]]]:
    """Profile one step: the share of matrix products in the CPU time, and the operations that take most."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        take()
    spent = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    whole = sum(spent.values())
    products = sum(v for k, v in spent.items() if any(name in k for name in MATRIX_OPERATIONS))
    most = sorted(spent.items(), key=lambda item: -item[1])[:8]
    return products / whole, [(key, value / whole) for key, value in most]


def machine(threads: int) -> dict[str, Any]:
    """Say what was measured on."""
    import torch

    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(), "threads": threads,
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
    }  # fmt: skip
