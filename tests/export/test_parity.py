"""What is compared, and what a comparison finds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cat_serve.contract import Batch, Output, StudioOutput
from cat_serve.errors import ParityError
from export.gate import determinism
from export.parity import coarser, compare, require, rows_budget
from export.probes import (
    Seeded,
    batch_invariant,
    duplicates_equal,
    in_batches,
    invariance_sizes,
    many_images,
    probe_batch,
    seeded_probe,
    studio_probe,
)

PIXELS = 32 * 32 * 3


def some_output(images: int = 4) -> Output:
    pixels = np.random.default_rng(0).integers(60, 190, (images, 32, 32, 3)).astype(np.uint8)
    return Output(pixels, np.ones(images, dtype=bool))


def off_by(output: Output, levels: int, share: float) -> Output:
    """Return the output with the first `share` of all values `levels` higher."""
    images = output.images.copy()
    images.reshape(-1)[: round(share * images.size)] += np.uint8(levels)
    return Output(images, output.ok)


def test_probe_covers_every_class_and_three_psi() -> None:
    batch = probe_batch(10, (64,))
    pairs = {
        (int(c), round(float(p), 3))
        for c, p in zip(batch.class_id, batch.truncation_psi, strict=True)
    }
    assert pairs == {(c, p) for c in range(10) for p in (1.0, 0.7, 0.0)}
    assert len(probe_batch(1000, (64,))) == 96
    assert len(probe_batch(1000, (64,), classes=2)) == 6


def test_studio_probe_has_single_classes_and_mixtures() -> None:
    batch = probe_batch(5, (64,))
    probe = studio_probe(batch)
    assert np.allclose(probe.class_weight.sum(axis=1), 1)
    assert (probe.class_id[::2, 0] == batch.class_id[::2]).all()
    assert (probe.class_weight[::2] == [1, 0, 0, 0]).all()
    assert (np.count_nonzero(probe.class_weight[1::2], axis=1) == 3).all()
    assert any(len(set(ids[:3])) > 1 for ids in probe.class_id[1::2])


def test_comparison_counts_levels() -> None:
    output = some_output(1)
    difference = compare(output, off_by(output, 3, 1 / PIXELS))
    assert difference.max_levels == 3
    assert difference.almost_all_levels == 3  # one value of 3,072 is more than a ten-thousandth
    assert difference.share_differing == pytest.approx(1 / PIXELS)
    assert difference.psnr_db == pytest.approx(10 * np.log10(255**2 * PIXELS / 9))


@pytest.mark.parametrize("share", [0.00005, 0.0005, 0.3])
def test_figures_are_those_of_numpy(share: float) -> None:
    a, b = some_output(), off_by(some_output(), 9, share)
    levels = np.abs(a.images.astype(float) - b.images)
    difference = compare(a, b)
    assert difference.almost_all_levels == np.percentile(levels, 99.99, method="higher")
    assert difference.psnr_db == pytest.approx(10 * np.log10(255**2 / np.square(levels).mean()))
    assert difference.share_differing == pytest.approx((levels > 0).mean())
    x, y = (images.reshape(4, -1) / 127.5 - 1 for images in (a.images, b.images))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    assert difference.min_cosine == pytest.approx(((x * y).sum(axis=1) / norms).min())


def test_equal_outputs_have_infinite_psnr_which_json_can_hold() -> None:
    difference = compare(some_output(), some_output())
    assert difference.to_dict()["psnr_db"] is None
    require(difference, "fp32", "It")


def test_every_stage_of_a_studio_counts() -> None:
    plain = some_output()
    stages = np.stack([plain.images, plain.images], axis=1)
    a = StudioOutput(plain.images, plain.ok, stages)
    b = dataclasses.replace(a, stage_images=stages.copy())
    b.stage_images[0, 0, 0, 0, 0] += 5
    assert compare(a, b).max_levels == 5


@pytest.mark.parametrize(
    ("precision", "levels", "share", "passes"),
    [
        ("fp32", 1, 0.01, True),
        ("fp32", 2, 0.00005, False),  # the worst value decides
        ("fp32", 1, 0.2, False),  # PSNR 55 dB
        ("fp16", 8, 0.05, True),
        ("fp16", 60, 0.00005, True),  # the worst value is reported and does not decide
        ("fp16", 9, 0.0005, False),  # the 99.99th percentile decides
        ("fp16", 4, 0.9, False),  # PSNR 36.5 dB
        ("bf16", 8, 0.05, True),
        ("bf16", 9, 0.0005, False),
        ("tf32", 4, 0.05, True),
        ("tf32", 5, 0.0005, False),
        ("tf32", 1, 0.9, True),
        ("int8", 32, 0.05, True),
        ("int8", 33, 0.0005, False),
    ],
)
def test_each_precision_has_its_budget(
    precision: str, levels: int, share: float, passes: bool
) -> None:
    output = some_output()
    difference = compare(output, off_by(output, levels, share))
    if passes:
        require(difference, precision, "It")
    else:
        with pytest.raises(ParityError, match="differs too much"):
            require(difference, precision, "It")


def test_row_that_is_not_finite_is_beyond_every_budget() -> None:
    output = some_output()
    bad = dataclasses.replace(output, ok=np.array([True, True, False, True]))
    with pytest.raises(ParityError, match="1 rows not ok"):
        require(compare(output, bad), "fp16", "It")


def test_batches_larger_than_the_probe_repeat_it() -> None:
    batch = probe_batch(2, (3,))
    seen: list[int] = []

    def engine(rows: Batch) -> Output:
        seen.append(len(rows))
        images = np.zeros((len(rows), 1, 1, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = rows.class_id + (4 if len(rows) > 7 else 0)
        return Output(images, np.ones(len(rows), dtype=bool))

    assert batch_invariant(engine, batch, (2, 16)) == {2: 0, 16: 4}
    assert seen == [1] * 6 + [2, 16]
    assert len(in_batches(engine, batch, 4).ok) == 6


def test_equal_rows_of_one_batch_are_compared() -> None:
    seen: list[list[int]] = []

    def engine(rows: Seeded) -> Output:
        seen.append(rows.seed.tolist())
        images = np.zeros((len(rows), 1, 1, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = rows.class_id
        images[3:, 0, 0, 0] += 2  # a row depends on its place
        return Output(images, np.ones(len(rows), dtype=bool))

    assert duplicates_equal(engine, seeded_probe(5), (2, 3, 7)) == {2: 0, 3: 0, 7: 2}
    assert seen == [[0, 0], [0, 0, 0], [0, 1, 2, 0, 1, 2, 0]]


def test_batches_go_up_to_the_largest() -> None:
    assert [invariance_sizes(n) for n in (1, 2, 8, 16, 64)] == [
        (), (2,), (2, 3, 7, 8), (2, 3, 7, 16), (2, 3, 7, 16, 64),
    ]  # fmt: skip


def test_many_images_spread_evenly_over_the_classes() -> None:
    batch = many_images(7, 1000)
    assert set(np.bincount(batch.class_id)) == {142, 143}
    assert batch.seed.tolist() == list(range(1000))


def test_two_precisions_are_held_to_the_coarser_one() -> None:
    assert coarser("fp32", "fp16") == coarser("fp16", "fp32") == "fp16"
    assert coarser("fp16", "int8") == "int8"
    assert coarser("tf32", "fp32") == "tf32"


def test_rows_may_change_with_their_batch_only_where_bytes_are_not_promised() -> None:
    assert rows_budget("fp16", "bytes") == rows_budget("fp32", "bytes") == 0
    assert (rows_budget("fp32", "latent"), rows_budget("fp16", "latent")) == (1, 4)


@pytest.mark.parametrize(
    ("worst", "level"), [({"2": 0, "7": 0}, "bytes"), ({"2": 0, "7": 1}, "latent"), ({}, "latent")]
)
def test_bytes_are_promised_only_where_batches_were_compared(
    worst: dict[str, int], level: str
) -> None:
    assert determinism({"batch_invariance_max_levels": worst}) == level
