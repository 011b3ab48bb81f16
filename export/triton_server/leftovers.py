"""What a Triton server that was killed leaves behind: stubs of its python backend, and their shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PROCESSES = Path("/proc")


def clear_up(regions: str) -> None:
    """End the stubs of a server that has ended, and free its memory.

    A stub usually notices that its server is gone; one that was killed in the middle of a request may wait for
    ever, with a model in its memory.

    Args:
        regions: the prefix of the server's shared memory, which no other server has.
    """
    for process in _users(regions):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for region in SHARED_MEMORY.glob(f"{regions}*"):
        region.unlink(missing_ok=True)


def _users(regions: str) -> list[int]:
    """Return the processes whose arguments name the regions."""
    found = []
    for line in PROCESSES.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may be gone
            if regions.encode() in line.read_bytes():
                found.append(int(line.parent.name))
    return found
