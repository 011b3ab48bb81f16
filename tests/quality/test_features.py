from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from cat_serve.errors import InvalidInput
from cat_serve.quality.features import WIDTH, extract, frechet_distance, pair_distance


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


def test_features_are_those_of_each_image_alone() -> None:
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    together = extract(images, batch_size=4)
    assert together.shape == (5, WIDTH)
    torch.testing.assert_close(together[3:4], extract(images[3:4]), rtol=1e-3, atol=1e-4)
    similar = functional.cosine_similarity(together[0], extract(images[0:1] // 2 + 30)[0], dim=0)
    assert similar > functional.cosine_similarity(together[0], extract(images[:1] * 0)[0], dim=0)


def test_floats_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"uint8 \[N, H, W, 3\], got float64 \[1, 8, 8, 3\]"):
        extract(np.zeros((1, 8, 8, 3)))
