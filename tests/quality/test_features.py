from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cat_serve.errors import InvalidInput
from cat_serve.quality.features import WIDTH, extract, folded, load_efficientnet


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


@torch.no_grad()
def test_folding_changes_features_by_rounding_alone() -> None:
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = load_efficientnet().eval()
    expected = plain.extract_features(x)
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    quick = folded(plain)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    torch.testing.assert_close(quick.extract_features(x), expected, rtol=1e-3, atol=1e-3)
    assert expected.abs().max() > 1
