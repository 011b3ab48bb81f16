from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cat_serve.errors import CheckpointError
from cat_serve.quality.classifier import (
    Classifier,
    accuracy,
    grey,
    load_classifier,
    predict,
    save_classifier,
    train_classifier,
)


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy pictures of three classes: a bar at the top, in the middle, at the bottom."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 9 * label : 10 + 9 * label] += 150
    return images, labels


@pytest.fixture(scope="module")
def judge() -> Classifier:
    """A classifier that was trained for a moment; it knows little."""
    return train_classifier(*bars(128, seed=0), num_classes=3, epochs=2)


@pytest.mark.slow
def test_learns_and_generalises() -> None:
    model = train_classifier(*bars(960, seed=0), num_classes=3)
    assert accuracy(model, *bars(100, seed=1)) > 0.95
    images, labels = bars(100, seed=2)
    assert accuracy(model, images, (labels + 1) % 3) < 0.05


def test_the_seed_is_fixed_and_the_global_stream_untouched() -> None:
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    models = [train_classifier(*bars(256, seed=0), num_classes=3, epochs=1) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    weights = [list(model.state_dict().values()) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_predictions_do_not_depend_on_the_batch(judge: Classifier) -> None:
    images, _ = bars(7, seed=1)
    assert (predict(judge, images, batch_size=2) == predict(judge, images)).all()


def test_grey_is_the_mean_of_the_channels() -> None:
    images = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    images[0, 0, 0] = (255, 0, 51)
    assert grey(images)[0, 0, 0, 0] == pytest.approx(0.4)


def test_a_kept_judge_is_the_same_judge(judge: Classifier, tmp_path: Path) -> None:
    save_classifier(tmp_path / "judge.pt", judge)
    images, _ = bars(20, seed=1)
    again = load_classifier(tmp_path / "judge.pt", 3)
    assert torch.equal(judge(grey(images)), again(grey(images)))


def test_another_judge_is_refused(judge: Classifier, tmp_path: Path) -> None:
    save_classifier(tmp_path / "judge.pt", judge)
    with pytest.raises(CheckpointError, match=r"judge\.pt is not this classifier"):
        load_classifier(tmp_path / "judge.pt", 10)
