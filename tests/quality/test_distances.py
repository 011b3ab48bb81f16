from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from cat_serve.errors import InvalidInput
from cat_serve.quality.distances import (
    Moments,
    frechet,
    frechet_distance,
    kernel_distance,
    pair_distance,
)


def test_distance_of_two_gaussians_is_the_closed_form() -> None:
    """N(0, 1) and N(m, s^2) in each of W independent dimensions: W (m^2 + (1 - s)^2)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40_000, 6, generator=generator)
    b = 1.5 + 3 * torch.randn(40_000, 6, generator=generator)
    assert frechet_distance(b, a) == pytest.approx(6 * (1.5**2 + 2**2), rel=0.02)


def test_distance_of_a_singular_set_to_itself_is_nothing() -> None:
    few = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_pairs_are_taken_within_classes_and_never_of_one_item() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 1.0], [100.0, 2.0]])
    labels = np.array([0, 0, 1, 1, 1])
    assert pair_distance(features, labels) == pytest.approx((5 + (1 + 2 + 1) / 3) / 2)


def test_distance_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(2, 24, 24, generator=random).double()
    a, b = (
        torch.randn(60, 24, generator=random).double() @ mix + 0.3 * i
        for i, mix in enumerate(mixing)
    )
    identity = nn.Identity()
    identity.num_features = 24  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=identity)
    metric.set_dtype(torch.float64)
    metric.update(b, real=True)
    metric.update(a, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-8)


def test_commuting_covariances_have_the_closed_form() -> None:
    """tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) = sum (s_1 - s_2)^2 in a common basis."""
    basis, _ = np.linalg.qr(np.random.RandomState(0).randn(3, 3))
    a = Moments(np.zeros(3), basis @ np.diag([1.0, 4.0, 0.0]) @ basis.T)
    b = Moments(np.array([0.0, 3.0, 4.0]), basis @ np.diag([9.0, 4.0, 25.0]) @ basis.T)
    assert frechet(a, b) == pytest.approx(25 + (1 - 3) ** 2 + 0 + 5**2)


def test_moments_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="do not belong together"):
        Moments(np.zeros(3), np.zeros((2, 2)))
    with pytest.raises(InvalidInput, match="width 2 and 3"):
        frechet(Moments(np.zeros(2), np.eye(2)), Moments(np.zeros(3), np.eye(3)))
    with pytest.raises(InvalidInput, match="no covariance"):
        Moments.of(torch.zeros(1, 3))


def test_kernel_distance_is_near_nothing_for_one_distribution_and_always_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, 4, generator=random)
    same = kernel_distance(a, b)
    torch.manual_seed(1)
    assert kernel_distance(a, b) == same
    assert abs(same["mean"]) < 0.1
    # for constants x and y: k(x, x) + k(y, y) - 2 k(x, y), k = (<x, y> / W + 1)^3
    ones = torch.ones(10, 4)
    assert kernel_distance(2 * ones, ones)["mean"] == pytest.approx(5**3 + 2**3 - 2 * 3**3)
