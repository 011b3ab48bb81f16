"""Measure one whole training step (D, G, average) against the straightforward version of it.

    python -m benchmarks.training_step --preset fashion-32 --rounds 5
    python -m benchmarks.training_step --size B --batch-size 2 --rounds 2
    python -m benchmarks.training_step --compile

With --compile the package's step takes part a third time, its blocks through torch.compile, as `training.train
--compile` does; compiling is timed apart. All versions take turns on the same weights and the same batch, so that a slow minute of the machine hits both.
The profile says how much of the time is matrix products; the rate of a step's multiplications is set against
the best rate that a plain product of matrices reached on the same threads between the rounds. Time is the
process's CPU time, which other work on the machine moves least. Latents are random and in memory: reading them
is not measured. A table on stderr, one line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.processor import machine, matrix_peak, profile

COMPILED = "cat-serve, compiled"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--preset", default="fashion-32", help="settings and sizes (default: fashion-32)"
    )
    parser.add_argument(
        "--size", help="of an ImageNet model instead: S, B, M, L, XL, H (no teacher)"
    )
    parser.add_argument("--batch-size", type=int, help="images a step (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each version (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--compile", action="store_true", help="measure compiled blocks too (minutes to compile)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train", resumes=False)


@dataclass
class Version:
    """One way to take a step.

    Attributes:
        average: moves the averaged weights.
        foreach: whether the optimiser and the clipping work on all tensors at once.
    """

    name: str
    objective: Any
    average: Callable[..., None]
    foreach: bool


class Trainer:
    """Networks, optimisers and one batch; takes whole steps in either version, as `training.loop.Run` does."""

    def __init__(self, config: Any) -> None:
        import torch

        from cat_serve.model.generator import Generator
        from training.discriminator import Discriminator
        from training.loop import ADAM_EPS, BETAS

        torch.manual_seed(0)
        self.config = config
        self.generator = Generator(config.generator)
        self.discriminator = Discriminator(config.discriminator)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            network: torch.optim.AdamW(
                network.parameters(), lr=1e-6, betas=BETAS, eps=ADAM_EPS, weight_decay=0.0
            )
            for network in (self.generator, self.discriminator)
        }
        g = config.generator
        self.x = torch.randn(config.batch_size, g.latent_channels, g.latent_size, g.latent_size)
        self.y = torch.randint(g.num_classes, (config.batch_size,))

    def versions(self) -> tuple[Version, Version]:
        """Return the package's step and the straightforward one."""
        from benchmarks.straightforward import Straightforward, average
        from training.ema import update_ema
        from training.objective import Objective

        networks = (self.generator, self.discriminator, self.config)
        return (
            Version("cat-serve", Objective(*networks), update_ema, True),
            Version("straightforward", Straightforward(*networks), average, False),
        )

    def compiled(self) -> Trainer:
        """Compile the blocks at their first use; returns itself."""
        from training.engine import Engine, Runtime

        Engine(Runtime(compile=True, cpu=True)).prepare(self.generator, self.discriminator)
        return self

    def step(self, version: Version, position: int) -> dict[str, float]:
        """Take one step; returns the losses."""
        from training.ema import ema_decay
        from training.objective import frozen
        from training.streams import stream_at

        objective, batch = version.objective, (self.x, self.y)
        d_losses = objective.discriminator_step(*batch, stream_at(0, "d", position), position)
        self._descend(d_losses["d_total"], self.discriminator, version)
        with frozen(self.discriminator):
            g_losses = objective.generator_step(*batch, stream_at(0, "g", position))
            self._descend(g_losses["g_total"], self.generator, version)
        version.average(self.ema, self.generator, ema_decay(position + len(self.y), len(self.y)))
        return {key: float(value.detach()) for key, value in (d_losses | g_losses).items()}

    def _descend(self, loss: Any, network: Any, version: Version) -> None:
        from torch import nn

        from training.loop import CLIP_NORM

        optimizer = self.optimizers[network]
        optimizer.param_groups[0]["foreach"] = version.foreach
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM, foreach=version.foreach)
        optimizer.step()


def configuration(arguments: argparse.Namespace) -> Any:
    """Return what is trained: a preset, or an ImageNet model of some size without a teacher."""
    from training.presets import train_preset
    from training.representation import Representation

    name = f"cat-{arguments.size.lower()}2-256" if arguments.size else arguments.preset
    config = replace(train_preset(name), representation=Representation())
    return replace(config, batch_size=arguments.batch_size or config.batch_size)


def measure(
    steps: Mapping[str, Callable[[int], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Let all versions take turns.

    Args:
        steps: by name, what takes the n-th step.

    Returns:
        the seconds of their steps, those of a first step (memory is allocated, blocks are compiled), and the peak of
        matrix products, FLOP/s.
    """
    first = {name: _timed(step, 0) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peak, names = 0.0, list(steps)
    for turn in range(rounds):
        peak = max(peak, matrix_peak())
        for name in names if turn % 2 == 0 else names[::-1]:
            seconds[name].append(_timed(steps[name], turn))
    return seconds, first, peak


def _timed(step: Callable[[int], object], turn: int) -> float:
    begin = _cpu_seconds()
    step(turn)
    return _cpu_seconds() - begin


def _cpu_seconds() -> float:
    """Return the CPU time of this process and, since compiling is theirs, of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, return the figures."""
    import torch

    from training.dry_run import Sizes, step_macs
    from training.engine import Runtime

    torch.set_num_threads(arguments.threads)
    config = configuration(arguments)
    trainer = Trainer(config)
    steps = {each.name: partial(trainer.step, each) for each in trainer.versions()}
    if arguments.compile:
        compiled = Trainer(config).compiled()
        steps[COMPILED] = partial(compiled.step, compiled.versions()[0])
    seconds, first, peak = measure(steps, arguments.rounds)
    batch = config.batch_size
    rates = {name: batch / statistics.median(times) for name, times in seconds.items()}
    flops = 2 * step_macs(Sizes(config), config, Runtime())
    report: dict[str, Any] = {
        "model": config.name, "batch_size": batch, "rounds": arguments.rounds,
        "machine": machine(arguments.threads), "matrix_peak_gflops": round(peak / 1e9, 1),
        "gflop_per_image": round(flops / 1e9, 2),
        "images_per_cpu_second": {name: round(rate, 3) for name, rate in rates.items()},
        "step_cpu_seconds": {k: [round(t, 3) for t in sorted(v)] for k, v in seconds.items()},
        "speedup": round(rates["cat-serve"] / rates["straightforward"], 2),
        "share_of_matrix_peak": round(rates["cat-serve"] * flops / peak, 3),
    }  # fmt: skip
    if arguments.compile:
        report["speedup_compiled"] = round(rates[COMPILED] / rates["straightforward"], 2)
        report["first_step_cpu_seconds"] = round(first[COMPILED], 1)
    print(table(report), file=sys.stderr)
    ours = trainer.versions()[0]
    share, most = profile(lambda: trainer.step(ours, arguments.rounds))
    report["profile"] = {
        "matrix_products": round(share, 3),
        "most": {key: round(value, 3) for key, value in most},
    }
    print(f"matrix products take {share:.0%} of cat-serve's time", file=sys.stderr)
    return report


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"{report['model']}, batch {report['batch_size']}, {report['machine']['cpu']}, "
        f"{report['machine']['threads']} thread(s), load {report['machine']['load']}",
        "| version | images per CPU second | CPU seconds a step (median) |",
        "|---|---|---|",
    ]
    for name, rate in report["images_per_cpu_second"].items():
        lines.append(f"| {name} | {rate:g} | {report['batch_size'] / rate:.3f} |")
    if "speedup_compiled" in report:
        lines.append(
            f"x{report['speedup_compiled']} compiled, which took {report['first_step_cpu_seconds']} s"
        )
    lines.append(
        f"x{report['speedup']}; {report['share_of_matrix_peak']:.0%} of {report['matrix_peak_gflops']} GFLOP/s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
