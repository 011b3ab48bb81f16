from __future__ import annotations

import pytest
import torch

from cat_serve.errors import InvalidInput
from cat_serve.quality.inception import inception_score


def test_sure_and_even_predictions_score_the_number_of_classes() -> None:
    """And in whatever order they come: here class by class, as samples do."""
    sure = torch.eye(5).repeat_interleave(2000, dim=0)
    score = inception_score(sure)
    assert score["mean"] == pytest.approx(5, rel=1e-2)
    assert score["std"] < 0.01
    assert inception_score(sure) == score


def test_equal_predictions_score_one() -> None:
    assert inception_score(torch.full((40, 8), 1 / 8))["mean"] == pytest.approx(1)


def test_score_is_the_closed_form_between_them() -> None:
    """Half the images are p = (3/4, 1/4), half the reverse: exp(KL(p || (1/2, 1/2)))."""
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat(5000, 1)
    expected = torch.exp(p[0] @ (2 * p[0]).log())
    assert inception_score(p)["mean"] == pytest.approx(float(expected), rel=1e-3)


def test_few_images_have_no_score() -> None:
    with pytest.raises(InvalidInput, match="19 images"):
        inception_score(torch.full((19, 4), 0.25))
