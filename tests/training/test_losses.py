"""Losses against closed forms and slow sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.losses import (
    Consistency,
    add_penalty_noise,
    approximate_penalty,
    consistency_loss,
    discriminator_loss,
    generator_loss,
    label_loss,
)

SCALES = (1, 2, 4, 8)


def constant_stages(*values: float) -> Tensor:
    """One sample whose stage k is values[k] everywhere."""
    return (
        torch.tensor(values, dtype=torch.float32)
        .view(1, -1, 1, 1, 1)
        .expand(1, -1, 4, 8, 8)
        .clone()
    )


def test_losses_at_equal_logits_are_ln_2() -> None:
    logits = torch.randn(5, 4)
    for loss in (discriminator_loss, generator_loss):
        assert float(loss(logits, logits)) == pytest.approx(math.log(2), abs=1e-6)


def test_adversarial_losses_are_mean_softplus_of_the_margin() -> None:
    real, fake = 3 * torch.randn(2, 5, 4)
    margins = [r - f for r, f in zip(real.flatten().tolist(), fake.flatten().tolist(), strict=True)]
    expected_d = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    expected_g = sum(math.log1p(math.exp(margin)) for margin in margins) / len(margins)
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected_d, rel=1e-5)
    assert float(generator_loss(real, fake)) == pytest.approx(expected_g, rel=1e-5)


def test_generator_loss_gives_real_logits_no_gradient() -> None:
    real, fake = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    generator_loss(real, fake).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert (fake.grad < 0).all()  # the generator wants its logits higher


def test_consistency_of_zeros_and_a_one() -> None:
    stages = constant_stages(0, 0, 0, 1)
    loss = consistency_loss(stages, Consistency(), SCALES)
    assert float(loss) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3, abs=1e-6)
    assert float(loss) == pytest.approx(0.6111, abs=1e-4)
    uniform = consistency_loss(stages, Consistency(omegas="uniform"), SCALES)
    assert float(uniform) == pytest.approx(1.0)


def test_consistency_vanishes_exactly_when_all_stages_agree() -> None:
    same = torch.randn(2, 1, 4, 8, 8).repeat(1, 4, 1, 1, 1)
    assert float(consistency_loss(same, Consistency(), SCALES)) == 0
    for k in range(4):
        other = same.clone()
        other[0, k, 0, 0, 0] += 1
        assert float(consistency_loss(other, Consistency(), SCALES)) > 0


@pytest.mark.parametrize("count", [2, 3, 4])
def test_consistency_equals_the_slow_sum(count: int) -> None:
    stages = torch.randn(3, count, 4, 8, 8)
    slow = 0.0
    for k in range(1, count):
        squares = [(a - b) ** 2 for a, b in zip(
            stages[:, k - 1].flatten().tolist(), stages[:, -1].flatten().tolist(), strict=True
        )]  # fmt: skip
        slow += 1 / (count - k) * sum(squares) / len(squares)
    loss = consistency_loss(stages, Consistency(), SCALES[-count:])
    assert float(loss) == pytest.approx(slow / (count - 1), rel=1e-5)


def test_consistency_at_scale_ignores_what_the_scale_cannot_show() -> None:
    checkers = (-1.0) ** torch.arange(8) * ((-1.0) ** torch.arange(8))[:, None]
    stages = constant_stages(0, 0, 0, 0)
    stages[:, 0] = checkers  # every 2 x 2 block has mean 0
    assert float(consistency_loss(stages, Consistency(), SCALES)) == pytest.approx(1 / 3 / 3)
    at_scale = Consistency(at_scale=True)
    assert float(consistency_loss(stages, at_scale, SCALES)) == 0
    stages = constant_stages(0, 0, 0, 1)  # a difference that every scale shows
    assert float(consistency_loss(stages, at_scale, SCALES)) == pytest.approx(0.6111, abs=1e-4)


@pytest.mark.parametrize("detach", [False, True])
def test_anchor_gets_gradient_unless_detached(detach: bool) -> None:
    stages = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
    consistency_loss(stages, Consistency(detach_anchor=detach), SCALES[1:]).backward()
    assert stages.grad is not None
    moved = stages.grad.abs().sum(dim=(0, 2, 3, 4)) > 0
    assert moved.tolist() == [True, True, not detach]


def test_penalty_of_a_linear_discriminator_is_its_squared_slope() -> None:
    batch = 20_000
    slopes = [torch.randn(1, 2, 1, 1), torch.randn(1, 2, 2, 2)]
    images = [torch.randn(batch, *slope.shape[1:]) for slope in slopes]

    def judge(scales: list[Tensor]) -> Tensor:
        pairs = zip(scales, slopes, strict=True)
        return torch.stack([(x * a).sum(dim=(1, 2, 3)) for x, a in pairs], dim=1)

    noised = add_penalty_noise(images, torch.Generator().manual_seed(0))
    penalty = approximate_penalty(judge(images), judge(noised))
    expected = float(sum(slope.square().sum() for slope in slopes))
    # The square of a normal value has relative deviation sqrt(2): here 1 % of the mean.
    assert float(penalty) == pytest.approx(expected, rel=0.04)


def test_penalty_gradient_flows_through_both_terms() -> None:
    logits, noised = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    approximate_penalty(logits, noised).backward()
    expected = 2 * (logits - noised).detach().sum(dim=1, keepdim=True) / 0.01**2 / 3
    torch.testing.assert_close(logits.grad, expected.expand(3, 4))
    torch.testing.assert_close(noised.grad, -expected.expand(3, 4))


def test_label_loss_of_equal_logits_is_the_log_of_the_number_of_classes() -> None:
    loss = label_loss(torch.full((5, 3, 10), 2.5), torch.arange(5))
    assert loss.item() == pytest.approx(math.log(10))


def test_label_loss_is_the_mean_surprise_of_every_scale() -> None:
    logits = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([5, 0, 2, 2])
    surprises = [
        logits[i, k].exp().sum().log() - logits[i, k, y[i]] for i in range(4) for k in range(3)
    ]
    torch.testing.assert_close(label_loss(logits, y), torch.stack(surprises).mean())


def test_penalty_noise_is_normal_with_sigma_a_hundredth() -> None:
    images = [torch.zeros(64, 4, side, side) for side in (2, 8)]
    small, large = add_penalty_noise(images, torch.Generator().manual_seed(0))
    assert float(large.std()) == pytest.approx(0.01, rel=0.03)
    assert float(large.mean()) == pytest.approx(0, abs=0.0005)
    assert not torch.equal(small.flatten(), large.flatten()[: small.numel()])  # drawn anew
