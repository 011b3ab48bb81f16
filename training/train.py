"""Train a CAT generator on prepared latents.

    python -m training.train --preset fashion-32 --data data/fashion-32 --vae checkpoints/fashion-32.vae --run runs/fashion-32

The run folder holds the checkpoint (`NAME.safetensors`, averaged weights), the discriminator beside it, the
training state, `log.jsonl`, and a picture of samples and of stages per snapshot. Start the same command
again after an interruption and it goes on; a larger --total-nimg goes on from a finished run.

On several GPUs or machines, with the same batch and the same result:

    torchrun --nproc-per-node 8 -m training.train ...        (or: accelerate launch -m training.train ...)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from cat_serve.errors import InvalidInput
from training.options import (
    add_config_arguments,
    add_runtime_arguments,
    resolve_config,
    resolve_runtime,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--preset", required=True,
        help="fashion-32; cat-{s,b,m,l,xl,h}2-256 (classes follow the data); folder (everything does); experiment-{small,large}",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, help="folder made by training.prepare")
    parser.add_argument(
        "--vae",
        type=Path,
        help="the VAE that encoded the data: diffusers' folder, or a checkpoint",
    )
    parser.add_argument(
        "--run", "--run-folder", type=Path, dest="run",
        help="folder for everything the run writes (torchrun takes --run for one of its own: --run-folder)",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="initial", type=Path, metavar="CHECKPOINT",
        help="start from its weights (other data and classes are fine), its discriminator if it lies beside it",
    )  # fmt: skip
    add_config_arguments(parser)
    add_runtime_arguments(parser)
    parser.add_argument(
        "--teacher-weights", type=Path, help="local folder of the teacher's weights"
    )
    parser.add_argument("--photographs", type=Path, help="folder of the data set, for the teacher")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--snapshot-nimg", type=int, default=20_000, help="images between pictures")
    parser.add_argument("--log-nimg", type=int, default=2_000, help="images between log lines")
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write curves and pictures to RUN/tensorboard too",
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="say sizes, GMACs, memory, steps and FLOPs, and write nothing; works without data and VAE too",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, default=1, help="of the run that --dry-run is about (default: 1)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    if int(os.environ.get("RANK", "0")):  # of several processes the first one reports
        with contextlib.redirect_stdout(None):
            return run_command(lambda: work(arguments), extra="train")
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Train, or say what training would be; return what to report."""
    from training.presets import train_preset

    train_preset(arguments.preset)  # a wrong name is said before anything is read
    if arguments.dry_run:
        return dry_run(arguments)
    needed = ("data", "vae", "run")
    if missing := [f"--{name}" for name in needed if getattr(arguments, name) is None]:
        raise InvalidInput(
            f"Training needs {', '.join(missing)}.", hint="only --dry-run does without"
        )
    return train(arguments)


def dry_run(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the size and the cost of a run.

    Raises:
        InvalidInput: the preset does not say how many images there are, and no data do.
    """
    from training.data import Index
    from training.dry_run import plan
    from training.presets import preset_nimg

    index = Index.load(arguments.data) if arguments.data else None
    count = index.count if index else preset_nimg(arguments.preset)
    if arguments.processes < 1:
        raise InvalidInput(f"{arguments.processes} processes make no run.")
    config = resolve_config(arguments, index)
    return plan(config, count, resolve_runtime(arguments), arguments.processes)


def train(arguments: argparse.Namespace) -> dict[str, object]:
    """Train as the arguments say; return what to report."""
    import torch

    from training.data import Latents
    from training.engine import Engine
    from training.loop import Run

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = Latents(arguments.data)
    config = resolve_config(arguments, data.index)
    run = Run(
        config,
        data,
        arguments.vae,
        arguments.run,
        arguments.photographs,
        arguments.teacher_weights,
        arguments.initial,
        arguments.tensorboard,
        Engine(resolve_runtime(arguments)),
    )
    run.train(arguments.snapshot_nimg, arguments.log_nimg)
    run.engine.close()
    checkpoint = arguments.run / f"{config.name}.safetensors"
    return {"checkpoint": str(checkpoint), "nimg": run.nimg, "seconds": round(run.seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
