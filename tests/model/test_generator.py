"""The generator against the paper's tables and against its equations, written out slowly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cat_serve.model.checkpoint import parameter_count
from cat_serve.model.config import GeneratorConfig, Modulation, generator_preset, swiglu_width
from cat_serve.model.generator import Block, Generator, tiny_eps_rms_norm
from cat_serve.model.layers import rms_norm, sincos_positions, unpatchify

GeneratorFactory = Callable[..., Generator]

# size    millions of parameters       GMACs
#         no_shift (GAT)  shift (CAT)  at a grid of 32
TABLE = {
    "S":  (        29.36,       33.50,     6.05),
    "B":  (       116.75,      133.29,     23.0),
    "M":  (       230.13,      260.85,     46.0),
    "L":  (       408.75,      463.33,     80.6),
    "XL": (       602.25,      681.95,    118.6),
    "H":  (       848.27,      959.77,    166.7),
}  # fmt: skip
ROWS = [
    (size, modulation, row[column], row[2])
    for size, row in TABLE.items()
    for column, modulation in enumerate(("no_shift", "shift"))
]


def macs_by_formula(config: GeneratorConfig) -> int:
    """Count multiplications of matrix products, scores and mixing of the attention included."""
    tokens, width, hidden = config.tokens_per_side**2, config.width, swiglu_width(config.width)
    block_vectors, head_vectors = (6, 2) if config.modulation == "shift" else (4, 1)
    out = config.patch**2 * config.latent_channels
    block = tokens * (4 * width**2 + 3 * width * hidden) + 2 * tokens**2 * width
    block += block_vectors * width**2
    head = tokens * width * out + head_vectors * width**2
    mapping = (config.class_dim + config.z_dim) * width + width**2
    return config.depth * block + config.stages * head + mapping


@pytest.mark.parametrize(("size", "modulation", "millions", "gmacs"), ROWS)
def test_size_and_cost_are_the_published_ones(
    size: str, modulation: Modulation, millions: float, gmacs: float
) -> None:
    config = generator_preset(size, modulation=modulation)
    with torch.device("meta"):
        generator = Generator(config)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            generator(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))
    # The published counts include GAT's dead patch embedding (17 C) and its position table (256 C).
    published = parameter_count(generator) + 273 * config.width
    assert f"{published / 1e6:.2f}" == f"{millions:.2f}"
    macs = counter.get_total_flops() // 2
    assert macs == macs_by_formula(config)
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.002)


def test_last_stage_adds_the_last_heads_output(make_generator: GeneratorFactory) -> None:
    generator = make_generator(depth=8)
    tokens: list[Tensor] = []
    for head in generator.heads:
        head.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    h = generator(torch.randn(2, 64), torch.tensor([0, 4]), stages=True)
    assert h.shape == (2, 4, 4, 16, 16)
    parts = [unpatchify(t, side=8, patch=2) for t in tokens]
    torch.testing.assert_close(h[:, -1] - h[:, -2], parts[-1])
    for k in range(4):
        torch.testing.assert_close(h[:, k], sum(parts[: k + 1]))


def test_heads_come_after_equal_shares_of_the_blocks(make_generator: GeneratorFactory) -> None:
    generator = make_generator(depth=6, latent_size=8)
    order: list[str] = []
    for name, modules in (("block", generator.blocks), ("head", generator.heads)):
        for index, module in enumerate(modules):
            module.register_forward_hook(lambda *_, n=f"{name}{index}": order.append(n))
    generator(torch.randn(1, 64), torch.tensor([0]))
    assert " ".join(order) == (
        "block0 block1 head0 block2 block3 head1 block4 block5 head2"  # kL/K
    )


def test_inference_returns_the_last_stage(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    z, y = torch.randn(3, 64), torch.tensor([0, 1, 2])
    assert torch.equal(generator(z, y), generator(z, y, stages=True)[:, -1])


def norm_slowly(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("modulation", ["shift", "no_shift"])
def test_block_follows_its_equation(modulation: Modulation) -> None:
    torch.manual_seed(0)
    block = Block(16, 2, modulation).requires_grad_(False)
    for parameter in block.parameters():  # gates of order 1, so that each branch shows
        parameter.normal_(std=0.5)
    w, u = torch.randn(2, 16), torch.randn(2, 4, 16)
    rope = torch.stack([torch.ones(4, 8), torch.zeros(4, 8)])
    project = block.modulation.project
    vectors = (w * torch.sigmoid(w)) @ project.weight.T + project.bias
    parts = [part[:, None] for part in vectors.split(16, dim=1)]
    if modulation == "no_shift":
        parts = [parts[0], torch.zeros(()), *parts[1:3], torch.zeros(()), parts[3]]
    scale1, shift1, gate1, scale2, shift2, gate2 = parts
    slow = u + gate1 * block.attention(norm_slowly(u, 1e-6) * (1 + scale1) + shift1, rope)
    slow = slow + gate2 * block.ffn(norm_slowly(slow, 1e-6) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(u, w, rope), slow, rtol=1e-4, atol=1e-4)  # values near 20


@pytest.mark.parametrize("modulation", ["shift", "no_shift"])
def test_head_follows_its_equation(
    make_generator: GeneratorFactory, modulation: Modulation
) -> None:
    head = make_generator(modulation=modulation).heads[1]
    w, u = torch.randn(2, 16), torch.randn(2, 64, 16)
    project = head.modulation.project
    vectors = (w * torch.sigmoid(w)) @ project.weight.T + project.bias
    scale, shift = vectors.split(16, dim=1) if modulation == "shift" else (vectors, vectors * 0)
    modulated = norm_slowly(u, 1e-6) * (1 + scale[:, None]) + shift[:, None]
    slow = modulated @ head.project.weight.T + head.project.bias
    torch.testing.assert_close(head(u, w), slow)


def test_mapping_follows_its_equation(make_generator: GeneratorFactory) -> None:
    mapping = make_generator().mapping
    z, y = torch.randn(3, 64), torch.tensor([4, 0, 4])
    x = torch.cat([norm_slowly(mapping.class_embedding[y], 1e-8), norm_slowly(z, 1e-8)], dim=1)
    inner = 0.01 * (x @ mapping.first.weight.T + mapping.first.bias)
    inner = inner * torch.sigmoid(inner)
    slow = 0.01 * (inner @ mapping.second.weight.T + mapping.second.bias)
    torch.testing.assert_close(mapping(z, y), slow)


def test_tiny_epsilon_is_that_of_the_plain_formula_to_the_bit() -> None:
    for size in (1.0, 0.02, 1e-4, 1e-6):
        x = size * torch.randn(50, 64)
        assert torch.equal(tiny_eps_rms_norm(x), rms_norm(x, 1e-8))
    assert torch.equal(tiny_eps_rms_norm(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_tokens_start_as_the_positions_for_every_sample(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    seen: list[Tensor] = []
    generator.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    generator(torch.randn(2, 64), torch.tensor([1, 3]))
    torch.testing.assert_close(seen[0], sincos_positions(8, 16).expand(2, -1, -1))


def test_samples_of_a_batch_do_not_see_each_other(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    z, y = torch.randn(3, 64), torch.tensor([0, 1, 2])
    together = generator(z, y)
    torch.testing.assert_close(together[1:2], generator(z[1:2], y[1:2]))
    assert not torch.allclose(together[1], generator(z[1:2], y[:1])[0])  # the class counts
    assert not torch.allclose(together[1], generator(z[:1], y[1:2])[0])  # and so does z


def test_fresh_modulation_is_small_but_not_zero() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(depth=2, width=64, heads=4, latent_size=4, num_classes=3)
    weight = Generator(config).blocks[0].modulation.project.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(0.1 * (6 / (7 * 64)) ** 0.5, rel=0.01)


def test_zero_latent_gives_finite_output(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    zero = torch.zeros(2, 64)
    assert generator(zero, torch.tensor([0, 1])).isfinite().all()
    generator.mapping.class_embedding.zero_()
    assert generator(zero, torch.tensor([0, 1])).isfinite().all()


@pytest.mark.parametrize("modulation", ["shift", "no_shift"])
def test_halved_trunk_stays_close_with_the_mapping_in_float32(
    make_generator: GeneratorFactory, modulation: Modulation
) -> None:
    generator = make_generator(modulation=modulation)
    z = torch.cat([torch.randn(2, 64), torch.zeros(1, 64)])
    y = torch.tensor([0, 1, 2])
    expected = generator(z, y)
    generator.blocks.half()
    generator.heads.half()
    w = generator.mapping(z, y)
    halved = generator(z, y)
    assert (w.dtype, halved.dtype) == (torch.float32, torch.float16)
    assert halved.isfinite().all()
    error = (halved.float() - expected).abs().max()
    assert error < 0.02 * expected.abs().max()


def test_truncation_is_exact_at_both_ends(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    w, y = torch.randn(3, 16), torch.tensor([3, 0, 3])
    assert torch.equal(generator.truncate(w, y, torch.ones(3)), w)
    assert torch.equal(generator.truncate(w, y, torch.zeros(3)), generator.w_avg[y])
    mixed = generator.truncate(w, y, torch.tensor([0.0, 0.25, 1.0]))  # each row has its own psi
    assert torch.equal(mixed[[0, 2]], torch.stack([generator.w_avg[3], w[2]]))
    torch.testing.assert_close(mixed[1], 0.75 * generator.w_avg[0] + 0.25 * w[1])


def test_psi_one_is_no_truncation_and_psi_zero_forgets_z(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    z, y = torch.randn(2, 64), torch.tensor([2, 2])
    assert torch.equal(generator(z, y, torch.ones(2)), generator(z, y))
    first, second = generator(z, y, torch.zeros(2))
    assert torch.equal(first, second)


def test_w_avg_follows_the_mean_of_each_class(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    before, w = generator.w_avg.clone(), torch.randn(7, 16)
    y = torch.tensor([3, 0, 3, 3, 1, 0, 3])
    generator.update_w_avg(w, y)
    for class_id in range(5):
        rows = [w[i] for i in range(7) if y[i] == class_id]
        if rows:
            mean = sum(rows) / len(rows)
            expected = 0.995 * before[class_id] + 0.005 * mean
            torch.testing.assert_close(generator.w_avg[class_id], expected)
        else:
            assert torch.equal(generator.w_avg[class_id], before[class_id])


def test_state_holds_w_avg_and_no_fixed_tables(make_generator: GeneratorFactory) -> None:
    generator = make_generator()
    buffers = generator.state_dict().keys() - dict(generator.named_parameters()).keys()
    assert buffers == {"w_avg"}
