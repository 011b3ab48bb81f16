"""Thousands of bad inputs: the suite tests/robustness, its long cases too, and how many it tried."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos.results import Result, at_least, at_most
from benchmarks.chaos.servers import ROOT

SUITE = "tests/robustness"
COUNTS_IN = "ROBUSTNESS_TRIED"  # names the file into which the suite writes what it tried
EXAMPLES_OF, EXAMPLES = "ROBUSTNESS_EXAMPLES", "200"  # of each property
LEAST = 5000
LOG = "robustness.log"
PATIENCE_S = 30.0


async def inputs(folder: Path) -> Result:
    """Run the suite; its output goes into `folder`."""
    began_s = time.perf_counter()
    counts = (folder / "tried.json").resolve()
    counts.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pytest", SUITE, "-m", "slow or not slow", "-p", "no:cacheprovider", "-q",
            cwd=ROOT, env=os.environ | {COUNTS_IN: str(counts), EXAMPLES_OF: EXAMPLES}, stdout=log, stderr=asyncio.subprocess.STDOUT,
            preexec_fn=_interruptible,
        )  # fmt: skip
        try:
            code = await process.wait()
        finally:
            await _ended(process)
    tried: dict[str, Any] = json.loads(counts.read_text()) if counts.is_file() else {}
    total = int(tried.get("total", 0))
    return Result(
        "bad inputs",
        (
            at_most(f"exit code of pytest {SUITE}", abs(code), 0),
            at_least("inputs tried", total, LEAST),
        ),
        time.perf_counter() - began_s,
        inputs=total,
        load=", ".join(
            f"{count:,} {kind}" for kind, count in tried.get("inputs_tried", {}).items()
        ),
        figures=tried,
    )


def _interruptible() -> None:
    """Undo what a shell does to what it starts in the background, where an interrupt would be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Let the suite end its servers, if it still runs."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), PATIENCE_S)
