"""The one-step transformer: each part that families choose, against a slow computation of the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.model.one_step import OneStep
from cat_serve.model.one_step_config import OneStepConfig

Make = Callable[..., OneStep]
TABLES: dict[str, Any] = {"order": ((0, 0), (1, 0))}
TOKENS: dict[str, Any] = {
    "order": ((0, 0), (1, 0)), "norm": "rms", "conditioning": "gates", "ffn": "swiglu", "qk_norm": True,
    "rope": "sequence", "bias": False, "positions": False, "class_tokens": 2, "constant_tokens": 3,
    "skip": 1.0, "gain": -1.0,
}  # fmt: skip


@pytest.fixture
def make() -> Make:
    """Make a seeded module, every weight and folded table away from its first value."""

    def build(**changes: Any) -> OneStep:
        values = {
            "width": 16,
            "heads": 2,
            "hidden": 24,
            "patch": 2,
            "size": 8,
            "channels": 4,
            "num_classes": 5,
        }
        torch.manual_seed(0)
        model = OneStep(OneStepConfig.from_dict(values | changes)).double().eval()
        for tensor in model.state_dict().values():
            tensor.add_(0.3 * torch.randn_like(tensor))
        return model.requires_grad_(False)

    return build


def slowly(model: OneStep, z: Tensor, y: int) -> Tensor:
    """Compute one image token by token, from the state dict alone."""
    state, c = model.state_dict(), model.config
    z = z * c.z_scale
    side, p = c.size // c.patch, c.patch
    tokens = []
    for row in range(side):
        for column in range(side):
            cell = z[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            values = torch.stack([cell[:, i, j] for i in range(p) for j in range(p)]).flatten()
            token = state["embed.weight"] @ values + state["embed.bias"]
            if c.positions:
                token = token + state["positions"][row * side + column]
            tokens.append(token)
    prefix = []
    for index in range(c.prefix_tokens):
        extra = state["class_embedding"][y] if index < c.class_tokens else 0
        prefix.append(state["prefix"][index] + extra)
    u = torch.stack(prefix + tokens)
    for weights, table in c.order:
        w = state["tables"][table][y] if c.tables else None
        u = slow_block(
            u,
            w,
            {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"blocks.{weights}.")},
            c,
        )
    u = u[c.prefix_tokens :]
    head = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith("heads.0.")}
    u = normalise(u, head.get("norm.weight"), c)
    if c.tables:
        w = state["tables"][c.head_table][y]
        scale, shift = (
            head["modulation.project.weight"] @ silu(w) + head["modulation.project.bias"]
        ).chunk(2)
        u = u * (1 + scale) + shift
    values = u @ head["project.weight"].T + head["project.bias"]
    x = torch.zeros_like(z)
    for index, value in enumerate(values):
        row, column = divmod(index, side)
        for at, (i, j) in enumerate((i, j) for i in range(p) for j in range(p)):
            x[:, row * p + i, column * p + j] = value[at * c.channels : (at + 1) * c.channels]
    return c.skip * z + c.gain * x


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normalise(x: Tensor, weight: Tensor | None, c: OneStepConfig) -> Tensor:
    if c.norm == "layer":
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert weight is not None
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def slow_block(u: Tensor, w: Tensor | None, state: dict[str, Tensor], c: OneStepConfig) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ state[f"{name}.weight"].T
        return y + state[f"{name}.bias"] if f"{name}.bias" in state else y

    if w is None:
        scale1 = shift1 = scale2 = shift2 = torch.zeros(c.width, dtype=u.dtype)
        gate1, gate2 = state["modulation.gate1"], state["modulation.gate2"]
    else:
        scale1, shift1, gate1, scale2, shift2, gate2 = linear(silu(w), "modulation.project").chunk(
            6
        )
    h = normalise(u, state.get("norm1.weight"), c) * (1 + scale1) + shift1
    u = u + gate1 * linear(slow_attention(linear(h, "attention.qkv"), state, c), "attention.out")
    h = normalise(u, state.get("norm2.weight"), c) * (1 + scale2) + shift2
    if c.ffn == "swiglu":
        gate, value = linear(h, "ffn.w12").chunk(2, -1)
        return u + gate2 * linear(silu(gate) * value, "ffn.w3")
    x = linear(h, "ffn.w1")
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return u + gate2 * linear(gelu, "ffn.w2")


def slow_attention(qkv: Tensor, state: dict[str, Tensor], c: OneStepConfig) -> Tensor:
    d = c.width // c.heads
    out = []
    for head in range(c.heads):
        q, k, v = (
            qkv[:, part * c.width + head * d : part * c.width + (head + 1) * d] for part in range(3)
        )
        if c.qk_norm:
            q, k = (
                x
                / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
                * state[f"attention.{name}_norm.weight"]
                for x, name in ((q, "q"), (k, "k"))
            )
        q, k = (torch.stack([turned(x[n], n, c) for n in range(len(x))]) for x in (q, k))
        out.append(torch.softmax(q @ k.T / math.sqrt(d), -1) @ v)
    return torch.cat(out, -1)


def turned(x: Tensor, token: int, c: OneStepConfig) -> Tensor:
    """Rotate pairs of channels as complex numbers."""
    d, side = len(x), c.size // c.patch
    pairs = torch.view_as_complex(x.reshape(-1, 2).contiguous())
    if c.rope == "none" or (c.rope == "grid" and token < c.prefix_tokens):
        return x
    if c.rope == "sequence":
        angles = [token * 10000 ** (-2 * i / d) for i in range(d // 2)]
    else:
        row, column = divmod(token - c.prefix_tokens, side)
        half = [10000 ** (-4 * i / d) for i in range(d // 4)]
        angles = [row * f for f in half] + [column * f for f in half]
    turn = torch.polar(
        torch.ones(d // 2, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
    )
    return torch.view_as_real(pairs * turn).flatten()


@pytest.mark.parametrize(
    "changes",
    [
        TABLES,
        TABLES | {"qk_norm": True, "ffn": "swiglu", "norm": "rms", "rope": "grid", "skip": 1.0},
        TABLES | {"patch": 1, "size": 4, "z_scale": 2.0, "gain": 0.5},
        {"order": ((0, 0), (1, 0), (0, 1), (1, 1)), "head_table": 2},
        {"order": ((0, 0), (1, 1)), "head_table": 1, "skip": 1.0, "gain": -1.0},
        TOKENS,
        TOKENS | {"rope": "grid", "positions": True, "channels": 3, "z_scale": 4.0, "skip": 0.0, "gain": 1.0},
        TABLES | {"class_tokens": 0, "constant_tokens": 2},
    ],
    ids=["dit", "lightning", "scaled", "looped", "two tables", "tokens", "pixels", "constant tokens"],
)  # fmt: skip
def test_every_part_does_what_its_equation_says(make: Make, changes: dict[str, Any]) -> None:
    model = make(**changes)
    z = torch.randn(2, *model.config.z_shape, dtype=torch.float64)
    x = model(z, torch.tensor([3, 1]))
    for row, y in enumerate((3, 1)):
        # The rotations come from a table in float32.
        torch.testing.assert_close(x[row], slowly(model, z[row], y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [TABLES, TOKENS], ids=["tables", "tokens"])
def test_class_and_noise_both_matter_and_psi_does_not(make: Make, changes: dict[str, Any]) -> None:
    model = make(**changes)
    z = torch.randn(1, *model.config.z_shape, dtype=torch.float64)
    first = model(z, torch.tensor([0]))
    assert not torch.allclose(first, model(z, torch.tensor([1])), atol=1e-3)
    assert not torch.allclose(first, model(-z, torch.tensor([0])), atol=1e-3)
    assert torch.equal(first, model(z, torch.tensor([0]), torch.tensor([0.3])))


@pytest.mark.parametrize("changes", [TABLES, TOKENS], ids=["tables", "tokens"])
def test_halved_module_keeps_folded_tables_and_result_in_float32(make: Make, changes: dict[str, Any]) -> None:  # fmt: skip
    model = make(**changes).float()
    z, y = torch.randn(2, *model.config.z_shape), torch.tensor([0, 4])
    exact = model(z, y)
    model.halve()
    folded = {"tables", "prefix", "class_embedding", "positions"}
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.float32 if name in folded else torch.float16), name
    halved = model(z, y)
    assert halved.dtype == torch.float32
    assert 0 < (halved - exact).abs().max() < 0.05 * exact.abs().max()


def test_configuration_survives_json(make: Make) -> None:
    import json

    config = make(order=((0, 0), (1, 1), (0, 2)), head_table=1).config
    assert OneStepConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.depth, config.tables, config.stages) == (2, 3, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": "batch"}, "norm 'batch'"),
        ({"patch": 3}, "patches of 3"),
        ({"heads": 3}, "3 heads"),
        ({"width": 12, "rope": "grid"}, "rotary"),
        ({"order": ((0, 0), (2, 0))}, "order"),
        ({"order": ()}, "order"),
        ({"conditioning": "gates"}, "class"),
        ({"colour": 1}, "colour"),
    ],
)
def test_impossible_shapes_are_refused(make: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        make(**TABLES | changes)


def test_missing_settings_are_named() -> None:
    values = dataclasses.asdict(OneStepConfig(8, 2, 8, 2, 4, 4, 3, ((0, 0),)))
    del values["hidden"], values["order"]
    with pytest.raises(InvalidInput, match="hidden, order"):
        OneStepConfig.from_dict(values)
