"""The real photographs, as Debian ships them."""

from __future__ import annotations

import numpy as np
import pytest

from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32


@pytest.mark.fashion_mnist
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_photographs_are_whole_and_balanced(split: str, count: int) -> None:
    images, labels = load_split(split)  # type: ignore[arg-type]
    assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
    assert np.bincount(labels).tolist() == [count // 10] * 10
    assert 60 < images.mean() < 85


@pytest.mark.fashion_mnist
def test_class_names_fit_the_photographs() -> None:
    """Trousers are tall, sneakers are flat and lie low: the names are in the order of the labels."""
    images, labels = load_split("test")
    lit = to_rgb32(images)[..., 0] > 32
    height = {name: lit[labels == i].any(2).sum(1).mean() for i, name in enumerate(CLASS_NAMES)}
    assert height["trouser"] > 26 > 15 > height["sneaker"]
