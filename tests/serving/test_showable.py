"""Pictures of one colour are told from all others, wherever the other pixel is."""

from __future__ import annotations

import numpy as np
import pytest

from cat_serve.showable import one_colour

SHAPE = (3, 17, 20, 3)


def test_picture_of_one_colour_is_one_whatever_the_colour() -> None:
    images = np.zeros(SHAPE, np.uint8)
    images[1] = (9, 200, 31)
    images[2, :, :, 0] = np.arange(20)
    assert one_colour(images).tolist() == [True, True, False]


@pytest.mark.parametrize("row", range(0, 17, 4))
@pytest.mark.parametrize("column", [0, 1, 7, 8, 19])
def test_one_other_pixel_is_enough(row: int, column: int) -> None:
    images = np.full(SHAPE, 7, np.uint8)
    images[1, row, column, 2] = 8
    assert one_colour(images).tolist() == [True, False, True]
