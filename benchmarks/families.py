"""Whether the generators of other papers run as fast, for what they compute, as CAT's: floating-point operations a second.

    python -m benchmarks.families --depth 8 --rounds 5

Each family's transformer at the width of its largest published model, random weights, one image, float32 in torch on this
processor, against CAT-XL/2 of the same depth. Runs alternate, and the time is the process's own, so that what else the machine
does weighs less. Operations are counted by torch on the meta device (matrix products and attention, two for each
multiply-add), at the depth that is run and at the published one. The decoder is not part of it. Exit code 1: a family is below
0.9 of CAT.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.random_families import FAMILIES, random_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cat_serve.model.config import GeneratorConfig
    from cat_serve.model.one_step_config import OneStepConfig

CLASSES = 1000
LEAST_RATIO = 0.9
CAT = "cat"


@dataclass(frozen=True)
class Shape:
    """Sizes of the largest published model of a family; `side` and `channels` are of what comes in."""

    model: str
    depth: int
    width: int
    heads: int
    side: int = 32
    channels: int = 4

    def config(self, family: str, depth: int) -> OneStepConfig:
        """Return the transformer's configuration at another depth."""
        sizes = {"depth": depth, "width": self.width, "heads": self.heads}
        return FAMILIES[family].config(sizes, self.side, self.channels, CLASSES)


# SoFlow and MeanFlow are alpha-Flow's shape.
SHAPES = {
    "advflow":      Shape("AdvFlow-XL/2",              28, 1152, 16),
    "advflow-deep": Shape("AdvFlow-XL/2, 56 layers",   28, 1152, 16),
    "imf":          Shape("iMF-XL/2",                  48, 1024, 16),
    "pmf":          Shape("pMF-H/16",                  48, 1280, 16, 256, 3),
    "dmf":          Shape("DMF-XL/2",                  28, 1152, 16),
    "alphaflow":    Shape("alpha-Flow-XL/2",           28, 1152, 16),
    "facm":         Shape("FACM-XL/1",                 28, 1152, 16, 16, 32),
}  # fmt: skip


def cat_config(depth: int) -> GeneratorConfig:
    """Return CAT-XL/2 at another depth, a multiple of its four stages."""
    from cat_serve.model.config import generator_preset

    return generator_preset("XL", depth=depth)


def module_of(config: Any, random: bool = True) -> nn.Module:
    """Return the generator of a configuration, of random weights; else as its class makes it."""
    from cat_serve.model.config import GeneratorConfig
    from cat_serve.model.generator import Generator
    from cat_serve.model.one_step import OneStep

    if isinstance(config, GeneratorConfig):
        return Generator(config).eval().requires_grad_(False)
    return random_generator(config, seed=0) if random else OneStep(config).eval()


def operations(config: Any) -> int:
    """Return the floating-point operations of one image, counted without computing any."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = module_of(config, random=False)
        inputs = (torch.empty(1, *config.z_shape), torch.empty(1, dtype=torch.long), torch.ones(1))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
    return int(counter.get_total_flops())


def runner(config: Any) -> Callable[[], float]:
    """Return a function that generates one image and returns the processor's seconds."""
    import torch

    module = module_of(config)
    z = torch.randn(1, *config.z_shape, generator=torch.Generator().manual_seed(0))
    y, psi = torch.tensor([207]), torch.ones(1)

    def run() -> float:
        start = time.process_time()
        with torch.inference_mode():
            made: Tensor = module(z, y, psi)
        seconds = time.process_time() - start
        assert made.isfinite().all()
        return seconds

    return run


def compare(family: str, depth: int, rounds: int, cat: Callable[[], float]) -> dict[str, Any]:
    """Alternate a family with CAT; return operations a second of both, and the median ratio."""
    shape = SHAPES[family]
    config = shape.config(family, depth)
    own, base = operations(config), operations(cat_config(depth))
    run = runner(config)
    run(), cat()  # memory is laid out, threads are there
    speeds, cat_speeds = [], []
    for index in range(rounds):
        order = (run, cat) if index % 2 else (cat, run)
        seconds = {each: each() for each in order}
        speeds.append(own / seconds[run])
        cat_speeds.append(base / seconds[cat])
    ratio = statistics.median(a / b for a, b in zip(speeds, cat_speeds, strict=True))
    whole = operations(shape.config(family, shape.depth))
    return {
        "family": family,
        "model": shape.model,
        "gmacs_published_depth": round(whole / 2e9, 1),
        "gflops_per_s": round(statistics.median(speeds) / 1e9, 1),
        "cat_gflops_per_s": round(statistics.median(cat_speeds) / 1e9, 1),
        "ratio": round(ratio, 3),
        "ratios": [round(a / b, 3) for a, b in zip(speeds, cat_speeds, strict=True)],
    }


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare every family that was asked for; the table goes to stderr."""
    import platform

    import torch

    from cat_serve.errors import InvalidInput

    if arguments.depth < 4 or arguments.depth % 4:
        raise InvalidInput(f"--depth is {arguments.depth}.", hint="a multiple of CAT's four stages")
    if arguments.rounds < 1:
        raise InvalidInput(f"--rounds is {arguments.rounds}; it must be at least 1.")
    torch.manual_seed(0)
    cat = runner(cat_config(arguments.depth))
    print(f"{'model':26} {'GMACs':>7} {'GFLOP/s':>9} {'CAT':>7} {'ratio':>6}", file=sys.stderr)
    rows = []
    for family in arguments.families:
        row = compare(family, arguments.depth, arguments.rounds, cat)
        rows.append(row)
        print(
            f"{row['model']:26} {row['gmacs_published_depth']:7} {row['gflops_per_s']:9} "
            f"{row['cat_gflops_per_s']:7} {row['ratio']:6}",
            file=sys.stderr,
        )
    return {
        "depth": arguments.depth,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cat_gmacs": round(operations(cat_config(28)) / 2e9, 1),
        "families": rows,
        "passed": all(row["ratio"] >= LEAST_RATIO for row in rows),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--families", nargs="+", choices=SHAPES, default=tuple(SHAPES), metavar="NAME",
        help=f"(default: all of {', '.join(SHAPES)})")  # fmt: skip
    add("--depth", type=int, default=8, metavar="N",
        help="blocks of every model, a multiple of 4: speed depends little on it, memory does (default: %(default)s)")  # fmt: skip
    add("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="torch", resumes=False)


if __name__ == "__main__":
    sys.exit(main())
