"""Compute what serving takes: images/s of a GPU, what saturates first, memory, cost, machines. Nothing is measured.

    python -m benchmarks.sizing
    python -m benchmarks.sizing --price H100=2.50 --duty 0.3 --cores-per-gpu 16
    python -m benchmarks.sizing --document docs/sizing.md --plot docs/images/sizing.png

The formulas are in benchmarks/roofline.py. Prints the tables of docs/sizing.md, and the figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.roofline import (
    DECODERS,
    GPUS,
    REFERENCE_BATCH,
    Gpu,
    Site,
    dollars_per_million,
    first_limit,
    memory_gb,
    pairs,
    plan,
    rates,
)

BATCHES = (1, 4, 16, 64)
RATES = (1, 10, 100, 1_000, 10_000, 100_000)  # images/s asked for
REFERENCE_GPU = "H100"


def shown(value: float) -> str:
    """Round to two significant digits, which is more than such an estimate has."""
    if value == 0:
        return "0"
    rounded = round(value, 1 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def span(low: float, high: float) -> str:
    return f"{shown(low)} .. {shown(high)}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def tables(gpus: Iterable[Gpu], site: Site) -> dict[str, str]:
    """Return every table of docs/sizing.md by its name."""
    gpus = tuple(gpus)
    reference = next(gpu for gpu in gpus if gpu.name == REFERENCE_GPU)
    batches = [f"batch {batch}" for batch in BATCHES]
    return {
        "hardware": table(
            ("GPU", "dense FP16, TFLOPS", "GB/s", "GB", "$/h (assumed)"),
            ((g.name, f"{g.peak_tflops:g}", f"{g.bandwidth_gb_s:g}", f"{g.memory_gb:g}", f"{g.dollars_per_hour:.2f}")
             for g in gpus),
        ),
        "throughput": table(
            ("model", "decoder", "GPU", *batches),
            ((m, d, g.name, *(span(*rates(m, d, g, batch)) for batch in BATCHES))
             for m, d in pairs() for g in gpus),
        ),
        "memory": table(
            ("model", "decoder", *batches),
            ((m, d, *(f"{memory_gb(m, d, batch):.1f}" for batch in BATCHES)) for m, d in pairs()),
        ),
        "saturation": table(
            ("model", "decoder", "GPU", "images/s", "cores for PNG", "cores for JPEG", "first with PNG", "first with JPEG"),
            (_saturation_row(m, d, g, site) for m, d in pairs() for g in gpus),
        ),
        "cost": table(
            ("GPU", *(f"{m}, {d}" for m, d in pairs())),
            ((g.name, *(span(*(dollars_per_million(rate, g.dollars_per_hour, site.duty)
                               for rate in reversed(rates(m, d, g)))) for m, d in pairs())) for g in gpus),
        ),
        "growth": table(
            ("images/s", "decoder", f"{reference.name}s", "front ends", "Gbit/s from Triton", "Gbit/s out",
             f"{reference.name}s with {site.cached:.0%} from a CDN"),
            (_growth_row(rate, d, reference, site) for rate in RATES for d in DECODERS),
        ),
    }  # fmt: skip


def _saturation_row(model: str, decoder: str, gpu: Gpu, site: Site) -> list[str]:
    _, rate = rates(model, decoder, gpu)
    cores = [rate * (ms + site.request_ms) / 1e3 for ms, _ in site.encoders.values()]
    first = [first_limit(rate, site, encoder) for encoder in site.encoders]
    return [model, decoder, gpu.name, shown(rate), *map(shown, cores), *first]


def _growth_row(rate: float, decoder: str, gpu: Gpu, site: Site) -> list[str]:
    gpu_rate = site.headroom * rates("CAT-M/2", decoder, gpu)[0]
    plain, cached = (plan(rate, gpu_rate, share, site) for share in (0, site.cached))
    return [
        f"{rate:,}", decoder, f"{plain.gpus:,}", f"{plain.front_ends:,}",
        shown(plain.internal_gbit), shown(plain.outgoing_gbit), f"{cached.gpus:,}",
    ]  # fmt: skip


def report(gpus: Iterable[Gpu], site: Site) -> dict[str, Any]:
    """Return the figures at the reference batch: [low, high] estimates."""
    figures = [
        {
            "model": model, "decoder": decoder, "gpu": gpu.name, "batch": REFERENCE_BATCH,
            "images_per_s": [round(rate, 1) for rate in rates(model, decoder, gpu)],
            "dollars_per_million": [
                round(dollars_per_million(rate, gpu.dollars_per_hour, site.duty), 2)
                for rate in reversed(rates(model, decoder, gpu))
            ],
            "memory_gb": round(memory_gb(model, decoder, REFERENCE_BATCH), 2),
        }
        for model, decoder in pairs() for gpu in gpus
    ]  # fmt: skip
    return {"computed_not_measured": True, "duty": site.duty, "figures": figures}


def fill(document: str, made: dict[str, str]) -> str:
    """Put every table between its marks, `<!-- name -->` and `<!-- end -->`.

    Raises:
        InvalidInput: the document has no place for one of them.
    """
    from cat_serve.errors import InvalidInput

    for name, text in made.items():
        start, end = f"<!-- {name} -->\n\n", "\n\n<!-- end -->"
        before, found, after = document.partition(start)
        old, ended, rest = after.partition(end)
        if not found or not ended or "<!-- " in old or start in rest:
            raise InvalidInput(f"The document does not have one place for the table {name}.",
                               hint=f"{start.strip()}, an empty line twice, {end.strip()}")  # fmt: skip
        document = before + start + text + end + rest
    return document


# --- command ---------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, site = parser.add_argument, Site()
    add(
        "--price",
        action="append",
        default=[],
        metavar="GPU=DOLLARS",
        help="price of an hour; repeat it",
    )
    add(
        "--duty",
        type=float,
        default=site.duty,
        help="share of paid hours at full load (%(default)s)",
    )
    add("--cores-per-gpu", type=float, default=site.cores_per_gpu, help="(%(default)s)")
    add("--gbit-per-gpu", type=float, default=site.gbit_per_gpu, help="(%(default)s)")
    add("--cached", type=float, default=site.cached, help="share that a CDN answers (%(default)s)")
    add(
        "--document",
        type=Path,
        metavar="FILE",
        help="write the tables into it, between their marks",
    )
    add("--plot", type=Path, metavar="FILE", help="draw images/s by batch, as PNG")
    return parser


def priced(gpus: Iterable[Gpu], prices: Iterable[str]) -> tuple[Gpu, ...]:
    """Return the GPUs with the prices that were given.

    Raises:
        InvalidInput: no such GPU, or no price.
    """
    from cat_serve.errors import InvalidInput

    known = {gpu.name: gpu for gpu in gpus}
    for price in prices:
        name, _, dollars = price.partition("=")
        if name not in known or not re.fullmatch(r"\d+(\.\d+)?", dollars) or not float(dollars):
            raise InvalidInput(f"--price {price} is no GPU and price.",
                               hint=f"for example H100=2.50; GPUs: {', '.join(known)}")  # fmt: skip
        known[name] = replace(known[name], dollars_per_hour=float(dollars))
    return tuple(known.values())


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables, write what was asked for, and return the figures."""
    from cat_serve.errors import InvalidInput
    from cat_serve.files import write_text

    if not 0 < arguments.duty <= 1 or not 0 <= arguments.cached < 1:
        raise InvalidInput(
            f"--duty {arguments.duty} and --cached {arguments.cached} are shares of 1.",
            hint="0 < duty <= 1 and 0 <= cached < 1",
        )
    if arguments.cores_per_gpu <= 0 or arguments.gbit_per_gpu <= 0:
        raise InvalidInput("--cores-per-gpu and --gbit-per-gpu must be more than 0.")
    gpus = priced(GPUS, arguments.price)
    site = Site(
        arguments.cores_per_gpu, arguments.gbit_per_gpu, arguments.duty, cached=arguments.cached
    )
    made = tables(gpus, site)
    for name, text in made.items():
        print(f"{name}\n\n{text}\n")
    if arguments.document:
        if not arguments.document.is_file():
            raise InvalidInput(f"There is no document {arguments.document}.")
        write_text(arguments.document, fill(arguments.document.read_text("utf-8"), made))
    if arguments.plot:
        from benchmarks.sizing_plot import draw

        draw(gpus, arguments.plot)
    return report(gpus, site)


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


if __name__ == "__main__":
    sys.exit(main())
