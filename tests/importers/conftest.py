"""Files in GAT's layout, written here: no published one is available."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GatFile = Callable[..., Path]

CLASSES, WIDTH, DEPTH, HEAD_DIM, PATCH, SIDE, CHANNELS = 10, 16, 4, 8, 2, 16, 4


def gat_tables(side: int, width: int, head_dim: int) -> dict[str, Tensor]:
    """Compute GAT's constant tables cell by cell: sin-cos positions, and the rotations of each token."""
    positions = torch.zeros(1, side * side, width, dtype=torch.float64)
    cos = torch.zeros(side * side, head_dim, dtype=torch.float64)
    sin = torch.zeros_like(cos)
    quarter, pairs = width // 4, head_dim // 4
    for row in range(side):
        for column in range(side):
            token = row * side + column
            for i in range(quarter):
                omega = 10000.0 ** (-i / quarter)
                for half, place in enumerate((column, row)):
                    angle = torch.tensor(place * omega, dtype=torch.float64)
                    positions[0, token, half * width // 2 + i] = angle.sin()
                    positions[0, token, half * width // 2 + quarter + i] = angle.cos()
            for channel in range(head_dim):
                place = row if channel < head_dim // 2 else column
                pair = channel % (head_dim // 2) // 2
                angle = torch.tensor(place * 10000.0 ** (-pair / pairs), dtype=torch.float64)
                cos[token, channel], sin[token, channel] = angle.cos(), angle.sin()
    return {
        "pos_embed": positions.float(),
        "feat_rope.freqs_cos": cos.float(),
        "feat_rope.freqs_sin": sin.float(),
    }


def gat_state(seed: int = 0) -> dict[str, Tensor]:
    """Draw GAT's state dict; no gate is zero, so that every weight matters."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(*shape, generator=rng)

    width, hidden, side = WIDTH, 2 * 4 * WIDTH // 3, SIDE // PATCH
    state = {
        "w_avg": draw(CLASSES, width),
        "x_embedder.proj.weight": draw(width, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": draw(width),
        "y_embedder.embedding_table.weight": draw(CLASSES, 64, scale=0.02),
        "latent_embedder.0.weight": draw(width, 128, scale=10),
        "latent_embedder.0.bias": draw(width, scale=10),
        "latent_embedder.2.weight": draw(width, width, scale=30),
        "latent_embedder.2.bias": draw(width, scale=10),
    } | gat_tables(side, width, HEAD_DIM)
    for i in range(DEPTH):
        shapes = {
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.w12.weight": (2 * hidden, width), "mlp.w12.bias": (2 * hidden,),
            "mlp.w3.weight": (width, hidden), "mlp.w3.bias": (width,),
            "adaLN_modulation.1.weight": (4 * width, width), "adaLN_modulation.1.bias": (4 * width,),
        }  # fmt: skip
        state |= {f"blocks.{i}.{key}": draw(*shape) for key, shape in shapes.items()}
        for norm in ("q_norm", "k_norm"):
            state[f"blocks.{i}.attn.{norm}.weight"] = 1 + draw(HEAD_DIM)
    for k in range(4):
        out = PATCH * PATCH * CHANNELS
        state |= {
            f"final_layers.{k}.linear.weight": draw(out, width),
            f"final_layers.{k}.linear.bias": draw(out),
            f"final_layers.{k}.adaLN_modulation.1.weight": draw(width, width),
            f"final_layers.{k}.adaLN_modulation.1.bias": draw(width),
        }
    return state


def gat_args(**changes: Any) -> argparse.Namespace:
    """Return some of the flags that GAT's train.py saves."""
    flags = {
        "model": "tiny", "modelD": "GAT-B/2", "resolution": 8 * SIDE, "num_classes": CLASSES, "qk_norm": True,
        "learning_rate": 2e-4, "enc_type": "dinov2-vit-b", "fused_attn": True, "seed": 0, "resume_step": 0,
    }  # fmt: skip
    del flags["model"]  # no published size is as small
    return argparse.Namespace(**(flags | changes))


@pytest.fixture
def gat_file(tmp_path: Path) -> GatFile:
    """Write a file as GAT's train.py does, optimizer states and all."""

    def write(state: dict[str, Tensor] | None = None, **content: Any) -> Path:
        path = tmp_path / "latest.pt"
        whole = {
            "generator": gat_state(seed=1),
            "discriminator": {"head.weight": torch.zeros(2, 2)},
            "ema": state if state is not None else gat_state(),
            "optG": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 2e-4}]},
            "args": gat_args(),
            "steps": 400_000,
            "wallclock_time": 12.5,
            "wandb_run_id": "abc",
        } | content
        torch.save({key: value for key, value in whole.items() if value is not ...}, path)
        return path

    return write


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """A narrow VAE in SD-VAE's shape, random weights."""
    from export.random_checkpoint import random_vae

    torch.manual_seed(0)
    folder = tmp_path / "sd-vae-narrow"
    random_vae((32, 32, 32, 32), 8 * SIDE).save_pretrained(folder)
    return folder
