"""One process of a run in float64: takes steps and saves what it has. Started by test_distributed.

python one_of_several.py CONFIG DATA VAE RUN STEPS OUT      (RANK, WORLD_SIZE and so on in the environment)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.config import TrainConfig
from training.data import Latents
from training.engine import Engine, Runtime
from training.loop import Run


def take_steps(run: Run, steps: int) -> dict[str, Any]:
    """Take steps in float64; return every step's numbers and gradients, and what the run is afterwards."""
    for module in (run.generator, run.critic, run.ema):
        module.double()
    numbers = [run.step()]
    first = {"generator": gradients(run.generator), "critic": gradients(run.critic)}
    numbers += [run.step() for _ in range(steps - 1)]
    networks = {name: getattr(run, name).state_dict() for name in ("generator", "critic", "ema")}
    return {"numbers": numbers, "gradients": first, "networks": networks}


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def main(config: str, data: str, vae: str, folder: str, steps: str, out: str) -> None:
    settings = TrainConfig.from_dict(json.loads(config))
    engine = Engine(Runtime(timeout_minutes=1.0))
    run = Run(settings, Latents(Path(data)), Path(vae), Path(folder), engine=engine)
    taken = take_steps(run, int(steps))
    torch.save(taken, f"{out}.{engine.rank}")
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
