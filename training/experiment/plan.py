"""Which runs there are: arms, sizes, seeds; and when each is measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cat_serve.errors import InvalidInput

CAT = "cat"
MARK_NIMG = 25_600
TOTAL_NIMG = 153_600  # six marks; 2,400 steps of 64 images
FOLLOW_UP = (
    "small",
    0,
)  # size and seed of the arms that are looked at only if the ordering does not appear


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        title: for tables and plots.
        flags: of `training.train`, beside those that all arms share.
    """

    title: str
    flags: tuple[str, ...] = ()


# The first three are the experiment. The others are for the case that it does not show what the paper shows; in this order.
ARMS: dict[str, Arm] = {
    CAT: Arm("CAT"),
    "lambda-0": Arm("scale-wise, lambda = 0", ("--lambda", "0")),
    "aggregated": Arm("scale-aggregated, lambda = 0", ("--attention", "aggregated", "--lambda", "0")),
    "lambda-0.03": Arm("lambda = 0.03", ("--lambda", "0.03")),
    "lambda-0.3": Arm("lambda = 0.3", ("--lambda", "0.3")),
    "lambda-1": Arm("lambda = 1", ("--lambda", "1")),
    "detach": Arm("detached anchor", ("--detach-anchor",)),
    "at-scale": Arm("distance at the scale", ("--at-scale",)),
    "uniform": Arm("uniform omegas", ("--omegas", "uniform")),
    "bilinear": Arm("bilinear resize", ("--resize", "bilinear")),
}  # fmt: skip
CONTROLS = ("lambda-0", "aggregated")

# size, arm, seed; in the order in which they run, so that a part of them compares something
PLAN = (
    ("small", CAT, 0),
    ("small", "lambda-0", 0),
    ("small", "aggregated", 0),
    ("small", CAT, 1),
    ("small", "lambda-0", 1),
    ("large", CAT, 0),
    ("large", "lambda-0", 0),
)
SIZES = ("small", "large")


@dataclass(frozen=True)
class Planned:
    """One run of `training.train`."""

    size: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.arm}-{self.seed}"

    @property
    def preset(self) -> str:
        return f"experiment-{self.size}"

    def flags(self, data: Path, vae: Path, out: Path, nimg: int, every_nimg: int) -> list[str]:
        """Return what `training.train` is given, to train it up to `nimg` images."""
        return [
            "--preset", self.preset, "--data", str(data), "--vae", str(vae), "--run", str(out / self.name),
            *ARMS[self.arm].flags, "--seed", str(self.seed), "--threads", "1",
            "--total-nimg", str(nimg), "--snapshot-nimg", str(every_nimg),
        ]  # fmt: skip

    def command(self, data: Path, vae: Path, out: Path, nimg: int, every_nimg: int) -> str:
        """Return the same as one types it."""
        flags = self.flags(data, vae, out, nimg, every_nimg)
        return shlex.join(["python", "-m", "training.train", *flags])


def catalogue() -> tuple[Planned, ...]:
    """Return every run that there is: the experiment's, then those of the other arms."""
    planned = [Planned(*row) for row in PLAN]
    known = {run.arm for run in planned}
    size, seed = FOLLOW_UP
    return (*planned, *(Planned(size, arm, seed) for arm in ARMS if arm not in known))


def choose(only: Sequence[str] | None) -> tuple[Planned, ...]:
    """Return the runs that are named by arm, by size, or by their own names; without any the experiment's.

    Raises:
        InvalidInput: nothing is called so.
    """
    if not only:
        return tuple(Planned(*row) for row in PLAN)
    everything = catalogue()
    for word in only:
        if not any(word in (run.arm, run.size, run.name) for run in everything):
            names = ", ".join(dict.fromkeys([*ARMS, *SIZES, *(run.name for run in everything)]))
            raise InvalidInput(
                f"The experiment has no {word!r}.", hint=f"arms, sizes and runs: {names}"
            )
    return tuple(run for run in everything if {run.arm, run.size, run.name} & set(only))


def marks(total_nimg: int, every_nimg: int) -> tuple[int, ...]:
    """Return the numbers of images at which a run is measured; the last is its end.

    Raises:
        InvalidInput: the end is no mark.
    """
    if every_nimg < 1 or total_nimg < every_nimg or total_nimg % every_nimg:
        raise InvalidInput(
            f"Runs of {total_nimg:,} images cannot be measured every {every_nimg:,}.",
            hint=f"--total-nimg must be a multiple of --every-nimg, for example {6 * max(1, every_nimg)}",
        )
    return tuple(range(every_nimg, total_nimg + 1, every_nimg))
