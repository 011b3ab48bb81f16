"""DiffAugment against one sample, one stage and one cell at a time."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from training.augment import PARTS, Draw, Part, augment, draw, resize, to_scales

SIDE = 8


def seeded_draw(batch: int, side: int = SIDE, seed: int = 0) -> Draw:
    return draw(batch, side, torch.Generator().manual_seed(seed))


def neutral_draw(batch: int, side: int = SIDE) -> Draw:
    """Change nothing: the square that is cut out lies beyond the corner."""
    zero, one = torch.zeros(batch), torch.ones(batch)
    integers = torch.zeros(batch, dtype=torch.int64)
    outside = torch.full((batch,), 2 * side)
    never = torch.zeros(batch, dtype=torch.bool)
    return Draw(zero, one, one, integers, integers, outside, outside, never)


def augment_slowly(stages: np.ndarray, drawn: Draw) -> np.ndarray:
    """Augment [B, K, C, H, W] in float64, with loops over all of it."""
    batch, count, channels, side, _ = stages.shape
    result = np.zeros_like(stages)
    for b in range(batch):
        one = {field.name: getattr(drawn, field.name)[b].item() for field in fields(drawn)}
        x = stages[b] + one["brightness"]
        grey = x[-1].mean(axis=0)  # over the channels of the final stage
        x = (x - grey) * one["saturation"] + grey
        mean = x[-1].mean()
        x = (x - mean) * one["contrast"] + mean
        if one["flip"]:
            x = x[..., ::-1]
        for k in range(count):
            for c in range(channels):
                for row in range(side):
                    for column in range(side):
                        from_row, from_column = row - one["shift_row"], column - one["shift_column"]
                        inside = 0 <= from_row < side and 0 <= from_column < side
                        hidden = all(
                            centre - side // 4 <= cell < centre + side // 4
                            for cell, centre in (
                                (row, one["cutout_row"]),
                                (column, one["cutout_column"]),
                            )
                        )
                        if inside and not hidden:
                            result[b, k, c, row, column] = x[k, c, from_row, from_column]
    return result


@pytest.mark.parametrize("stages", [1, 3])
def test_augmentation_equals_the_slow_one(stages: int) -> None:
    drawn = seeded_draw(16)
    x = torch.randn(16, stages, 4, SIDE, SIDE, dtype=torch.float64)
    slow = augment_slowly(x.numpy(), drawn)
    torch.testing.assert_close(augment(x, drawn), torch.from_numpy(slow), rtol=1e-6, atol=1e-6)


def test_one_draw_is_replayed_on_all_stages() -> None:
    drawn = seeded_draw(16)
    x = torch.randn(16, 1, 4, SIDE, SIDE).expand(-1, 3, -1, -1, -1)
    augmented = augment(x, drawn)
    assert torch.equal(augmented[:, 0], augmented[:, 2])
    assert torch.equal(augmented[:, 1], augmented[:, 2])
    assert torch.equal(augmented[:, 2:], augment(x[:, 2:], drawn))


def test_colour_means_come_from_the_final_stage() -> None:
    drawn = replace(
        neutral_draw(2), saturation=torch.tensor([0.5, 1.0]), contrast=torch.tensor([1.0, 1.4])
    )
    x = torch.randn(2, 3, 4, SIDE, SIDE)
    before = augment(x, drawn)
    x[:, 0] += 1.0
    assert torch.equal(augment(x, drawn)[:, 1:], before[:, 1:])
    x[:, -1] += 1.0
    shifted = augment(x, drawn)[:, 1] - before[:, 1]  # (1 - factor) times the mean's shift
    torch.testing.assert_close(shifted[0], torch.full_like(shifted[0], 0.5))
    torch.testing.assert_close(shifted[1], torch.full_like(shifted[1], -0.4))


def test_neutral_draw_is_the_identity() -> None:
    x = torch.randn(3, 2, 4, SIDE, SIDE)
    torch.testing.assert_close(augment(x, neutral_draw(3)), x)


def test_augmentation_is_differentiable() -> None:
    """Given its draw the augmentation is affine, so a difference is the gradient exactly."""
    drawn = seeded_draw(8)
    x, step, weight = torch.randn(3, 8, 3, 4, SIDE, SIDE, dtype=torch.float64)
    x.requires_grad_(True)
    (augment(x, drawn) * weight).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        difference = ((augment(x + step, drawn) - augment(x, drawn)) * weight).sum()
    torch.testing.assert_close((x.grad * step).sum(), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (16, 2), (32, 4)])
def test_draws_fill_their_ranges(side: int, reach: int) -> None:
    count = 4000
    drawn = seeded_draw(count, side)
    coloured = drawn.saturation != 1
    spread = 5 * math.sqrt(0.25 / count)  # five standard deviations of a share
    assert float(coloured.float().mean()) == pytest.approx(0.5, abs=spread)
    assert float(drawn.flip.float().mean()) == pytest.approx(0.4, abs=spread)
    for factor, neutral, low, high in (
        (drawn.brightness, 0.0, -0.5, 0.5),
        (drawn.saturation, 1.0, 0.0, 2.0),
        (drawn.contrast, 1.0, 0.5, 1.5),
    ):
        assert (factor[~coloured] == neutral).all()
        assert low <= float(factor.min()) < low + 0.02 * (high - low)
        assert high >= float(factor.max()) > high - 0.02 * (high - low)
    for shift in (drawn.shift_row, drawn.shift_column):
        assert shift.unique().tolist() == list(range(-reach, reach + 1))
    for centre in (drawn.cutout_row, drawn.cutout_column):
        assert centre.unique().tolist() == list(range(side + 1))


def test_draws_of_different_kinds_are_independent() -> None:
    drawn = seeded_draw(4000)
    coloured = drawn.saturation != 1
    kinds = [drawn.flip, drawn.shift_row, drawn.shift_column, drawn.cutout_row, drawn.cutout_column]
    table = torch.stack([kind.double() for kind in [coloured, *kinds]])
    off_diagonal = torch.corrcoef(table) - torch.eye(len(table))
    assert off_diagonal.abs().max() < 5 / math.sqrt(4000)


def test_cutout_blanks_a_quarter_of_the_area() -> None:
    centre = torch.tensor([4])
    drawn = replace(neutral_draw(1), cutout_row=centre, cutout_column=centre)
    blanked = augment(torch.ones(1, 1, 1, SIDE, SIDE), drawn)[0, 0, 0] == 0
    assert blanked.nonzero().amin(0).tolist() == [2, 2]
    assert blanked.nonzero().amax(0).tolist() == [5, 5]
    assert int(blanked.sum()) == SIDE * SIDE // 4


def block_means(x: Tensor, side: int) -> Tensor:
    factor = x.shape[-1] // side
    rows = [x[..., i::factor, :] for i in range(factor)]
    return sum(row[..., j::factor] for row in rows for j in range(factor)) / factor**2


@pytest.mark.parametrize("side", [2, 4, 8])
def test_area_resize_takes_means_of_whole_blocks(side: int) -> None:
    x = torch.randn(2, 4, SIDE, SIDE)
    torch.testing.assert_close(resize(x, side), block_means(x, side))


def test_bilinear_resize_by_four_looks_at_the_middle_of_a_block_only() -> None:
    x = torch.randn(2, 4, SIDE, SIDE)
    middle = sum(x[..., i::4, j::4] for i in (1, 2) for j in (1, 2)) / 4
    torch.testing.assert_close(resize(x, 2, "bilinear"), middle)
    torch.testing.assert_close(resize(x, 4, "bilinear"), block_means(x, 4))


def test_each_stage_goes_to_its_scale() -> None:
    x = torch.randn(2, 3, 4, SIDE, SIDE)
    scales = (2, 4, 8)
    for k, image in enumerate(to_scales(x, scales)):
        torch.testing.assert_close(image, block_means(x[:, k], scales[k]))
    for side, image in zip(scales, to_scales(x[:, 2:], scales), strict=True):
        torch.testing.assert_close(image, block_means(x[:, 2], side))  # a photograph goes to all


@pytest.mark.parametrize(("row", "column"), [(1, 0), (0, -1), (-1, 1)])
def test_edge_fill_repeats_the_border(row: int, column: int) -> None:
    x = torch.randn(1, 2, 3, SIDE, SIDE)
    drawn = replace(
        neutral_draw(1), shift_row=torch.tensor([row]), shift_column=torch.tensor([column])
    )
    cells = np.arange(SIDE)
    rows, columns = (np.clip(cells - by, 0, SIDE - 1) for by in (row, column))
    expected = x[..., rows, :][..., columns]
    torch.testing.assert_close(augment(x, drawn, "edge"), expected)
    assert (augment(x, drawn) - expected).abs().max() > 0.1


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.4, 0.4)])
def test_flips_come_as_often_as_told(probability: float, expected: float) -> None:
    drawn = draw(4000, SIDE, torch.Generator().manual_seed(0), probability)
    assert float(drawn.flip.float().mean()) == pytest.approx(expected, abs=0.03)
    plain = draw(4000, SIDE, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.contrast, plain.contrast)


# --- parts ---------------------------------------------------------------------------------------


def drawn_with(*parts: Part) -> Draw:
    return draw(64, SIDE, torch.Generator().manual_seed(0), 0.4, parts)


def test_parts_that_are_off_do_nothing() -> None:
    x = torch.randn(64, 1, 4, SIDE, SIDE)
    flipped = torch.where(drawn_with().flip.view(-1, 1, 1, 1, 1), x.flip(-1), x)
    torch.testing.assert_close(augment(x, drawn_with()), flipped)


@pytest.mark.parametrize("part", PARTS)
def test_part_that_is_off_leaves_the_draws_of_the_others(part: Part) -> None:
    every, rest = seeded_draw(64), drawn_with(*(other for other in PARTS if other != part))
    own = {
        "colour": ("brightness", "saturation", "contrast"),
        "translation": ("shift_row", "shift_column"),
        "cutout": ("cutout_row", "cutout_column"),
    }[part]
    for field in fields(Draw):
        same = torch.equal(getattr(every, field.name), getattr(rest, field.name))
        assert same == (field.name not in own), field.name


def test_cutout_that_is_off_blanks_nothing() -> None:
    x = torch.ones(64, 1, 4, SIDE, SIDE)
    assert (augment(x, drawn_with("colour", "translation"), "edge") != 0).all()
    assert (augment(x, drawn_with("cutout"), "edge") == 0).any()
