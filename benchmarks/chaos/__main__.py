"""Run the bad days: load, faults, abuse; write what was promised, and what was measured.

    python -m benchmarks.chaos
    python -m benchmarks.chaos --minutes 60 --document docs/reliability.md
    python -m benchmarks.chaos --only soak overload

Everything runs on loopback, on this machine, against servers that it starts and ends. Writes chaos.md and chaos.json
into --out and prints one line of JSON. Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.chaos.progress import Progress
    from benchmarks.chaos.results import Result

Experiment = Callable[[], Awaitable["Result"]]

NAMES = ("soak", "overload", "leaving", "leaving-workers", "leaving-triton", "faults-1", "faults-2", "lies-1", "lies-2", "inputs")  # fmt: skip
DEPARTURES = 10


def experiments(minutes: float, out: Path) -> Mapping[str, Experiment]:
    """Return all experiments by name; soak and overload share the time, the others take what they take."""
    from benchmarks.chaos.faults import faults
    from benchmarks.chaos.inputs import inputs
    from benchmarks.chaos.leaving import leaving
    from benchmarks.chaos.liars import lying
    from benchmarks.chaos.overload import overload
    from benchmarks.chaos.soak import Plan, soak
    from benchmarks.chaos.triton import standing

    async def leaving_triton() -> Result:
        with standing(1) as flags:
            return await leaving(DEPARTURES, "SIGTERM under load, Triton", *flags)

    soak_s, overload_s = 60 * minutes * 0.35, max(30.0, 60 * minutes * 0.15)
    rounds = max(1, round(minutes / 20))
    workers = ("--workers", "2")
    every: list[Experiment] = [
        lambda: soak(Plan(soak_s)),
        lambda: overload(overload_s, out),
        lambda: leaving(DEPARTURES),
        lambda: leaving(DEPARTURES, "SIGTERM under load, 2 workers", *workers),
        leaving_triton,
        lambda: faults(1, rounds),
        lambda: faults(2, rounds),
        lambda: lying(1),
        lambda: lying(2),
        lambda: inputs(out),
    ]
    return dict(zip(NAMES, every, strict=True))


async def run(
    chosen: Mapping[str, Experiment],
    progress: Progress,
    save: Callable[[Mapping[str, Result]], None],
) -> dict[str, Result]:
    """Run one after the other; one that breaks off is a broken promise, and the others go on.

    Args:
        save: called with all results so far after each.
    """
    from benchmarks.chaos.results import Promise, Result

    results = {}
    for name, experiment in chosen.items():
        progress.begin(name)
        began_s = time.perf_counter()
        try:
            result = await experiment()
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            promise = Promise("the experiment comes to its end", False, said, "its end")
            result = Result(name, (promise,), time.perf_counter() - began_s)
        results[name] = replace(result, measured=time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
        save(results)
        progress.end("held" if result.passed else f"BROKEN: {'; '.join(result.broken)}")
    return results


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.chaos.progress import Progress
    from benchmarks.chaos.report import circumstances, fill, kept, tables, write

    every = experiments(arguments.minutes, arguments.out)
    chosen = {name: every[name] for name in arguments.only or NAMES}
    began_s = time.perf_counter()
    before = kept(arguments.out) if arguments.only else {}

    def in_order(made: Mapping[str, Result]) -> dict[str, Result]:
        known = {**before, **made}
        return {name: known[name] for name in NAMES if name in known}

    facts = circumstances()

    def save(so_far: Mapping[str, Result]) -> None:
        known = in_order(so_far)
        write(known, facts, arguments.out)
        if arguments.document is not None:
            fill(arguments.document, tables(list(known.values()), facts))

    with Progress(len(chosen)) as progress:
        made = asyncio.run(run(chosen, progress, save))
    results = list(in_order(made).values())
    broken = [f"{result.name}: {text}" for result in results for text in result.broken]
    return {
        "passed": all(result.passed for result in results),
        "seconds": round(time.perf_counter() - began_s),
        "requests": sum(result.requests for result in results),
        "lost": sum(result.lost for result in results),
        "faults_survived": sum(result.faults for result in results),
        "inputs_tried": sum(result.inputs for result in results),
        "broken": broken,
        "tables": str(arguments.out / "chaos.md"),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=float, default=10.0,
                        help="about so long in all, on a machine that is idle (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        help="run these experiments; the others stay as they were measured before",
    )
    parser.add_argument("--out", type=Path, default=Path("build/chaos"),
                        help="folder for tables, logs and the slow model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--document", type=Path, help="put the tables into this document, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are ended then, too
    return run_command(lambda: work(arguments), extra="dev", resumes=False)


if __name__ == "__main__":
    sys.exit(main())
