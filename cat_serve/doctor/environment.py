"""The machine and what is installed on it: packages, cores, memory, disk, and variables that set nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from cat_serve import __version__, configuration
from cat_serve.doctor import network
from cat_serve.doctor.finding import Finding, Verdict
from cat_serve.errors import CatServeError
from cat_serve.settings import Settings

PACKAGES = (
    "numpy", "pillow", "fastapi", "uvicorn", "prometheus-client", "onnxruntime", "onnxruntime-gpu",
    "tritonclient", "torch", "onnx", "tensorrt", "opentelemetry-sdk",
)  # fmt: skip
LEAST_MEMORY_BYTES = 512 * 2**20
LEAST_DISK_BYTES = 2**30
CONTROL_GROUP = Path("/sys/fs/cgroup")


def look(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Look at everything that is not a model."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("package", "python", Verdict.OK, python)
    yield Finding("package", "cat-serve", Verdict.OK, __version__)
    yield from _packages(settings)
    yield _cores(settings)
    yield _workers(settings)
    yield _memory(CONTROL_GROUP)
    yield _disk(settings)
    yield from _variables(settings, environ)
    yield from network.look(settings, environ)


def _packages(settings: Settings) -> Iterator[Finding]:
    there = {name: version for name in PACKAGES if (version := _version(name))}
    for name, version in there.items():
        yield Finding("package", name, Verdict.OK, version)
    engines = {"onnxruntime", "onnxruntime-gpu"} & there.keys()
    if len(engines) == 2:
        yield Finding(
            "package", "onnxruntime", Verdict.FAILED,
            "onnxruntime and onnxruntime-gpu hold the same files and break each other",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install one of 'cat-serve[cpu]', 'cat-serve[gpu]'",
        )  # fmt: skip
    needed = {"onnxruntime": engines, "torch": {"torch"} & there.keys(), "triton": {"tritonclient"} & there.keys()}  # fmt: skip
    if not needed[settings.backend]:
        extra = "cpu" if settings.backend == "onnxruntime" else settings.backend
        yield Finding(
            "package", settings.backend, Verdict.LACKS,
            f"the backend {settings.backend} is not installed", f"pip install 'cat-serve[{extra}]'",
        )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores(settings: Settings) -> Finding:
    cores, wanted = available_cores(), settings.threads * settings.concurrency
    if settings.backend == "onnxruntime" and settings.provider == "cpu" and wanted > cores:
        return Finding(
            "machine", "cores", Verdict.WARNING,
            f"{cores}, and {settings.concurrency} passes of {settings.threads} threads want {wanted}",
            "lower --threads or --concurrency",
        )  # fmt: skip
    return Finding("machine", "cores", Verdict.OK, str(cores))


def _workers(settings: Settings) -> Finding:
    from cat_serve.workers.owned import private_socket

    if settings.workers == 1:
        return Finding("machine", "workers", Verdict.NONE, "everything is in one process")
    try:
        with private_socket():
            pass
    except CatServeError as error:
        return Finding("machine", "workers", Verdict.LACKS, error.message, error.hint)
    detail = f"{settings.workers} HTTP processes over one engine process"
    if settings.workers > (cores := available_cores()):
        return Finding("machine", "workers", Verdict.WARNING, f"{detail}; cores: {cores}",
                       "lower --workers: each has one core's worth of work")  # fmt: skip
    return Finding("machine", "workers", Verdict.OK, detail)


def available_cores() -> int:
    """Return how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def _memory(control_group: Path) -> Finding:
    left = available_bytes(Path("/proc/meminfo"), control_group)
    if left is None:
        return Finding("machine", "memory", Verdict.NONE, "this system does not tell")
    detail = f"{left / 2**20:.0f} MiB available"
    if left < LEAST_MEMORY_BYTES:
        return Finding("machine", "memory", Verdict.WARNING, detail,
                       "free some, or raise the limit of the container")  # fmt: skip
    return Finding("machine", "memory", Verdict.OK, detail)


def available_bytes(meminfo: Path, control_group: Path) -> int | None:
    """Return how much memory this process may still take: of the machine, and of its container."""
    left: list[int] = []
    if meminfo.is_file():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        left.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = control_group / "memory.max", control_group / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        left.append(int(text) - int(used.read_text()))
    return min(left, default=None)


def _disk(settings: Settings) -> Finding:
    folder = settings.model_repository or Path(sys.prefix)
    if not folder.exists():
        return Finding("machine", "disk", Verdict.NONE, "the model repository is not there")
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free"
    if free < LEAST_DISK_BYTES:
        return Finding("machine", "disk", Verdict.WARNING, detail, "new models may not fit: free some")  # fmt: skip
    return Finding("machine", "disk", Verdict.OK, detail)


def _variables(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    for name, meant in configuration.strangers(settings, environ).items():
        advice = f"it may have to be {meant}" if meant else "take it away; docs/settings.md has all"
        yield Finding("machine", name, Verdict.WARNING, "no setting has this name", advice)
