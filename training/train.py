"""Train a CAT generator on prepared latents.

    python -m training.train --preset fashion-32 --data data/fashion-32 --vae checkpoints/fashion-32.vae --run runs/fashion-32

The run folder holds the checkpoint (`NAME.safetensors`, averaged weights), the discriminator beside it, the
training state, `log.jsonl`, and a picture of samples and of stages per snapshot. Start the same command
again after an interruption and it goes on; a larger --total-nimg goes on from a finished run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import TrainConfig


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--preset", required=True, help="fashion-32, or cat-{s,b,m,l,xl,h}2-256")
    parser.add_argument("--data", type=Path, required=True, help="folder made by training.prepare")
    parser.add_argument(
        "--vae",
        type=Path,
        required=True,
        help="the VAE that encoded the data: diffusers' folder, or a checkpoint",
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for everything the run writes"
    )
    parser.add_argument("--total-nimg", type=int, help="images to train on (default: the preset's)")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--base-lr", type=float, help="learning rate at width 768 and batch 512")
    parser.add_argument(
        "--gamma", type=float, help="weight of the R1 and R2 penalties, held for the whole run"
    )
    parser.add_argument("--gamma-final", type=float, help="what gamma falls to instead")
    parser.add_argument("--gamma-anneal-nimg", type=int, help="images over which it falls")
    parser.add_argument("--lambda", dest="consistency", type=float, metavar="LAMBDA",
                        help="weight of the consistency loss (0 is the paper's control)")  # fmt: skip
    parser.add_argument("--teacher", help="none, efficientnet-lite0 or dinov2-vitb14")
    parser.add_argument(
        "--teacher-weights", type=Path, help="local folder of the teacher's weights"
    )
    parser.add_argument("--photographs", type=Path, help="folder of the data set, for the teacher")
    parser.add_argument("--width", type=int, help="of generator and discriminator")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--snapshot-nimg", type=int, default=20_000, help="images between pictures")
    parser.add_argument("--log-nimg", type=int, default=2_000, help="images between log lines")
    return parser


def resolve_config(arguments: argparse.Namespace) -> TrainConfig:
    """Apply the flags that were given to the preset."""
    from training.config import train_preset

    config = train_preset(arguments.preset)
    if arguments.width is not None:
        config = replace(
            config,
            generator=replace(config.generator, width=arguments.width),
            discriminator=replace(config.discriminator, width=arguments.width),
        )
    if arguments.consistency is not None:
        config = replace(
            config, consistency=replace(config.consistency, weight=arguments.consistency)
        )
    if arguments.teacher is not None:
        config = replace(
            config, representation=replace(config.representation, teacher=arguments.teacher)
        )
    if arguments.gamma is not None:
        config = replace(config, gamma_final=None)
    names = (
        "total_nimg",
        "batch_size",
        "base_lr",
        "gamma",
        "gamma_final",
        "gamma_anneal_nimg",
        "seed",
    )
    given = {name: getattr(arguments, name) for name in names}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Train as the arguments say; return what to report."""
    import torch

    from training.data import Latents
    from training.loop import Run

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = resolve_config(arguments)
    run = Run(
        config,
        Latents(arguments.data),
        arguments.vae,
        arguments.run,
        arguments.photographs,
        arguments.teacher_weights,
    )
    run.train(arguments.snapshot_nimg, arguments.log_nimg)
    checkpoint = arguments.run / f"{config.name}.safetensors"
    return {"checkpoint": str(checkpoint), "nimg": run.nimg, "seconds": round(run.seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
