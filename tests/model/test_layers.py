"""Every layer against its formula, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cat_serve.model.layers import (
    Attention,
    EqualizedLinear,
    RMSNorm,
    SwiGLU,
    apply_rope,
    linear,
    patchify,
    rms_norm,
    rope_angles,
    rope_table,
    sincos_positions,
    unpatchify,
)


def rotate_slowly(vector: list[float], row: int, column: int) -> list[float]:
    """Rotate the adjacent pairs of one head: the first half by the row, the second by the column."""
    half = len(vector) // 2
    result = []
    for pair in range(half):
        position, i = (row, pair) if pair < half // 2 else (column, pair - half // 2)
        angle = position * 10_000 ** (-2 * i / half)
        a, b = vector[2 * pair], vector[2 * pair + 1]
        result += [
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        ]
    return result


def spread_biases(module: nn.Module) -> None:
    """Move every vector off its initial value, so that a forgotten one is noticed."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.3)


def test_rope_rotates_each_pair_by_its_own_position() -> None:
    side, head_dim = 3, 12
    x = torch.randn(side * side, head_dim, dtype=torch.float64)
    rotated = apply_rope(x, rope_table(rope_angles(side, head_dim)))
    slow = [rotate_slowly(x[n].tolist(), *divmod(n, side)) for n in range(side * side)]
    torch.testing.assert_close(rotated, torch.tensor(slow, dtype=x.dtype), atol=1e-6, rtol=1e-6)


def test_rope_scores_depend_on_the_offset_alone() -> None:
    side, head_dim = 5, 8
    table = rope_table(rope_angles(side, head_dim))
    q, k = torch.randn(2, head_dim)
    scores = apply_rope(q.expand(25, -1), table) @ apply_rope(k.expand(25, -1), table).T
    scores = scores.view(side, side, side, side)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


def test_rope_with_angle_zero_changes_nothing() -> None:
    x = torch.randn(2, 4, 8)
    assert torch.equal(apply_rope(x, rope_table(torch.zeros(4, 4))), x)


def test_sincos_positions_follow_the_formula() -> None:
    side, width = 3, 16
    slow = torch.zeros(side * side, width)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                omega = 10_000 ** (-i / quarter)
                cell = slow[row * side + column]
                cell[i], cell[quarter + i] = math.sin(column * omega), math.cos(column * omega)
                cell[2 * quarter + i] = math.sin(row * omega)
                cell[3 * quarter + i] = math.cos(row * omega)
    torch.testing.assert_close(sincos_positions(side, width), slow)


def attend_slowly(layer: Attention, x: Tensor, angles: Tensor, visible: Tensor) -> Tensor:
    """Attend with loops over heads and queries, and an explicit softmax. x [N, C]."""
    count, width = x.shape
    head_dim = width // layer.heads
    mixed = torch.zeros(count, width)
    qkv = x @ layer.qkv.weight.T + layer.qkv.bias
    for head in range(layer.heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        q, k, v = (part[:, columns] for part in qkv.split(width, dim=1))
        q = layer.q_norm.weight * q / (q.square().mean(1, keepdim=True) + 1e-6).sqrt()
        k = layer.k_norm.weight * k / (k.square().mean(1, keepdim=True) + 1e-6).sqrt()
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.reshape(count, -1, 2)) * turn).flatten(1)
            for t in (q, k)
        )
        for n in range(count):
            scores = (k @ q[n] / math.sqrt(head_dim)).masked_fill(~visible[n], -math.inf)
            weights = scores.exp() / scores.exp().sum()
            mixed[n, columns] = weights @ v
    return mixed @ layer.out.weight.T + layer.out.bias


@pytest.mark.parametrize("groups", [None, (1, 5, 3)])
def test_attention_is_a_softmax_within_each_group(groups: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    layer = Attention(width=16, heads=2).requires_grad_(False)
    spread_biases(layer)
    x, angles = torch.randn(2, 9, 16), rope_angles(3, 8)
    visible = torch.ones(9, 9, dtype=torch.bool)
    if groups is not None:
        visible = torch.block_diag(*(torch.ones(size, size) for size in groups)).bool()
    slow = torch.stack([attend_slowly(layer, sample, angles, visible) for sample in x])
    table = rope_table(angles)
    torch.testing.assert_close(layer(x, table, groups), slow)
    torch.testing.assert_close(layer(x, table, mask=visible), slow)


def test_unpatchify_puts_every_value_in_its_cell() -> None:
    side, patch, channels = 3, 2, 4
    tokens = torch.randn(2, side * side, patch * patch * channels)
    grid = unpatchify(tokens, side, patch)
    assert grid.shape == (2, channels, side * patch, side * patch)
    for row in range(side * patch):
        for column in range(side * patch):
            token = tokens[:, (row // patch) * side + column // patch]
            first = ((row % patch) * patch + column % patch) * channels
            assert torch.equal(grid[:, :, row, column], token[:, first : first + channels])


@pytest.mark.parametrize(("channels", "side", "patch"), [(4, 8, 2), (3, 6, 3), (1, 4, 1)])
def test_patchify_and_unpatchify_are_inverse(channels: int, side: int, patch: int) -> None:
    grid = torch.randn(2, channels, side, side)
    tokens = patchify(grid, patch)
    assert tokens.shape == (2, (side // patch) ** 2, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, side // patch, patch), grid)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(4)
    nn.init.normal_(norm.weight)
    x = torch.tensor([3.0, -4.0, 0.0, 5.0])
    torch.testing.assert_close(norm(x), x / math.sqrt(50 / 4 + 1e-6) * norm.weight)


def test_rms_norm_epsilon_counts_for_small_values() -> None:
    x = torch.full((4,), 1e-3)  # mean square 1e-6, as large as epsilon
    torch.testing.assert_close(rms_norm(x), torch.full((4,), math.sqrt(0.5)))
    assert torch.equal(rms_norm(torch.zeros(4), eps=1e-8), torch.zeros(4))


def test_rms_norm_of_half_precision_neither_overflows_nor_underflows() -> None:
    large = torch.full((8,), 1000.0, dtype=torch.float16)  # its square is infinite in float16
    small = torch.full((8,), 3e-2, dtype=torch.float16)  # float16 would round epsilon off
    assert rms_norm(large).dtype == torch.float16
    torch.testing.assert_close(rms_norm(large).float(), torch.ones(8))
    torch.testing.assert_close(rms_norm(small).float(), torch.ones(8), atol=1e-3, rtol=0)
    assert torch.equal(rms_norm(torch.zeros_like(large), eps=1e-8), torch.zeros_like(large))


def test_equalized_linear_starts_as_plain_xavier() -> None:
    torch.manual_seed(0)
    layer = EqualizedLinear(200, 300)
    weight, bias = layer.effective()
    bound = math.sqrt(6 / 500)
    assert bound * 0.999 < float(weight.detach().abs().max()) <= bound * 1.000001
    assert float(weight.detach().var()) == pytest.approx(bound**2 / 3, rel=0.02)
    assert torch.equal(bias, torch.zeros(300))


def test_equalized_linear_multiplies_with_a_hundredth() -> None:
    layer = EqualizedLinear(3, 2)
    nn.init.normal_(layer.bias)
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), 0.01 * (x @ layer.weight.T + layer.bias))


def test_linear_is_xavier_with_zero_bias() -> None:
    torch.manual_seed(0)
    layer = linear(200, 300, gain=0.1)
    bound = 0.1 * math.sqrt(6 / 500)
    assert bound * 0.999 < float(layer.weight.detach().abs().max()) <= bound
    assert not layer.bias.any()


def test_swiglu_gates_one_layer_with_another() -> None:
    torch.manual_seed(0)
    width, hidden = 6, 10
    layer = SwiGLU(width, hidden).requires_grad_(False)
    spread_biases(layer)
    x = torch.randn(4, width)
    first, second = layer.w12.weight.split(hidden)
    first_bias, second_bias = layer.w12.bias.split(hidden)
    gate = x @ first.T + first_bias
    inner = gate * torch.sigmoid(gate) * (x @ second.T + second_bias)
    torch.testing.assert_close(layer(x), inner @ layer.w3.weight.T + layer.w3.bias)


def test_swiglu_starts_each_half_as_a_layer_of_its_own() -> None:
    torch.manual_seed(0)
    bound = math.sqrt(6 / (64 + 100))
    for half in SwiGLU(64, 100).w12.weight.detach().split(100):
        assert bound * 0.99 < float(half.abs().max()) <= bound
