"""FACM, arXiv 2507.03738, on LightningDiT-XL/1 (arXiv 2501.01423): here t = 0 is noise and t = 1 data.

One step: x = z + (1 - t) F(z, t = 0). RMS norms with a learned scale, queries and keys normalised, 2-D RoPE besides the fixed
position table, SwiGLU with biases whose two first matrices are one, adaLN-Zero with six chunks. Its training keeps two
averages under `emas`; the second (sigma_rel 0.2) is the published one. posterior = x std + mean, from `latents_stats.pt`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from tests.families.references import dit
from tests.families.references import equations as eq
from tests.families.references.dit import Config
from tests.families.references.equations import State

FAMILY = "facm"
SIZES = {"XL/1": Config(depth=28, width=1152, heads=16, patch=1, side=16, channels=32)}
TINY = Config(depth=3, width=32, heads=2, patch=1, side=6, channels=8, classes=10)
T = 0.0
ROPE = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")


def hidden(config: Config) -> int:
    """Return SwiGLU's width: two thirds of 4C."""
    return int(2 / 3 * (4 * config.width))


def layout(config: Config) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of one model."""
    width, head = config.width, config.width // config.heads
    tokens = config.tokens_per_side**2
    shared = dit.layout(config, ("t_embedder",))
    keys = {key: shape for key, shape in shared.items() if ".mlp.fc" not in key}
    for i in range(config.depth):
        shapes: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,), "norm2.weight": (width,),
            "attn.q_norm.weight": (head,), "attn.k_norm.weight": (head,),
            "mlp.w12.weight": (2 * hidden(config), width), "mlp.w12.bias": (2 * hidden(config),),
            "mlp.w3.weight": (width, hidden(config)), "mlp.w3.bias": (width,),
        }  # fmt: skip
        keys |= {f"blocks.{i}.{key}": shape for key, shape in shapes.items()}
    return keys | {"final_layer.norm_final.weight": (width,)} | dict.fromkeys(ROPE, (tokens, head))


def state_dict(config: Config, seed: int) -> State:
    """Draw a state; its tables of positions and rotations are the real ones."""
    state = dit.drawn(layout(config), config, seed)
    angles = eq.angles_2d(config.tokens_per_side, config.width // config.heads)
    both = angles.repeat_interleave(2, dim=1)
    return state | {ROPE[0]: both.cos().float(), ROPE[1]: both.sin().float()}


def published(config: Config, averaged: State, last: State) -> dict[str, Any]:
    """Return what its training saves: model, both averages with their counters, optimizer, flags."""
    emas: State = {}
    for which, model in ((0, last), (1, averaged)):
        emas |= {
            f"ema_models.{which}.initted": torch.tensor(True),
            f"ema_models.{which}.step": torch.tensor(250_000),
        }
        emas |= {f"ema_models.{which}.ema_model.{key}": value for key, value in model.items()}
    return {
        "model": last,
        "emas": emas,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": Namespace(image_size=256, num_classes=config.classes),
        "epoch": 400,
        "step": 250_000,
    }


def random_stats(config: Config, seed: int) -> State:
    """Return `latents_stats.pt`: mean and std of each channel, [1, C, 1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (1, config.channels, 1, 1)
    return {
        "mean": torch.randn(shape, generator=rng),
        "std": 1 + torch.rand(shape, generator=rng),
    }


def posterior(stats: State, latents: Tensor) -> Tensor:
    """Return what the VAE decodes: latents std + mean, channel by channel."""
    return latents * stats["std"] + stats["mean"]


def step(state: State, config: Config, z: Tensor, class_id: list[int]) -> Tensor:
    """Return x = z + (1 - t) F(z, t) at t = 0 of a batch, normalised latents [B, C, S, S]."""
    time = eq.time_embedding(state, "t_embedder", T)
    samples = []
    for x, y in zip(z, class_id, strict=True):
        c = time + state["y_embedder.embedding_table.weight"][y]
        samples.append(x + (1 - T) * _network(state, config, x, c))
    return torch.stack(samples)


def _network(state: State, config: Config, z: Tensor, c: Tensor) -> Tensor:
    x = eq.convolve(state, "x_embedder.proj", eq.cut(z, config.patch)) + state["pos_embed"][0]
    for i in range(config.depth):
        x = _block(state, config, f"blocks.{i}", x, c)
    shift, scale = eq.affine(state, "final_layer.adaLN_modulation.1", eq.silu(c)).chunk(2)
    x = eq.rms_norm(x, state["final_layer.norm_final.weight"]) * (1 + scale) + shift
    tokens = eq.affine(state, "final_layer.linear", x)
    return eq.paste(tokens, config.tokens_per_side, config.patch)


def _block(state: State, config: Config, name: str, x: Tensor, c: Tensor) -> Tensor:
    angles = eq.angles_2d(config.tokens_per_side, config.width // config.heads)
    modulation = eq.affine(state, f"{name}.adaLN_modulation.1", eq.silu(c))
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6)

    def each(head: Tensor, which: str) -> Tensor:
        return eq.rotate(eq.rms_norm(head, state[f"{name}.attn.{which}_norm.weight"]), angles)

    n = eq.rms_norm(x, state[f"{name}.norm1.weight"]) * (1 + scale1) + shift1
    q, k, v = eq.affine(state, f"{name}.attn.qkv", n).chunk(3, dim=1)
    attended = eq.attention(q, k, v, config.heads, each)
    x = x + gate1 * eq.affine(state, f"{name}.attn.proj", attended)
    n = eq.rms_norm(x, state[f"{name}.norm2.weight"]) * (1 + scale2) + shift2
    one, two = eq.affine(state, f"{name}.mlp.w12", n).chunk(2, dim=1)
    return x + gate2 * eq.affine(state, f"{name}.mlp.w3", eq.silu(one) * two)
