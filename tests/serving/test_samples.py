"""Samples for evaluation: their layout, and runs that are interrupted, resumed or asked for something else."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve.errors import ArtefactError, InvalidInput
from cat_serve.files import sha256_of
from cat_serve.mixtures import Mixture
from cat_serve.samples import (
    INDEX_NAME,
    Samples,
    join_shards,
    shard_name,
    write_one_file,
    write_shards,
)

SAMPLES = Samples(
    model="toy@0123456789ab", backend="fake", provider="cpu", precision="fp32", n=11,
    num_classes=3, class_id=None, seed=5, truncation_psi=1.0, shard_size=4, batch=None,
)  # fmt: skip


class Painter:
    """Makes images whose pixels say class (the one with the largest share) and seed; breaks off after so many calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.calls = calls
        self.rows = 0

    def __call__(self, mixtures: Sequence[Mixture], seeds: Sequence[int]) -> np.ndarray:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.rows += len(seeds)
        images = np.zeros((len(seeds), 2, 3, 3), dtype=np.uint8)
        classes = [max(mixture, key=lambda each: mixture[each]) for mixture in mixtures]
        images[..., 0] = np.array(classes)[:, None, None]
        images[..., 1] = np.array(seeds)[:, None, None]
        return images


def classes_of(mixtures: Sequence[Mixture]) -> list[int]:
    """Return the classes of mixtures of one each."""
    return [class_id for mixture in mixtures for class_id in mixture]


def nothing(images: int) -> None:
    pass


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def test_one_file_has_the_layout_of_the_field(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    assert write_one_file(path, SAMPLES, Painter(), nothing) == 11
    with np.load(path, allow_pickle=False) as samples:
        assert samples.files == ["arr_0", "arr_1"]
        images, labels = samples["arr_0"], samples["arr_1"]
    assert (images.dtype, images.shape) == (np.uint8, (11, 2, 3, 3))
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert images[:, 0, 0, 1].tolist() == [5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8]
    assert list(tmp_path.iterdir()) == [path]


def test_classes_are_even_in_all_and_in_every_piece() -> None:
    samples = replace(SAMPLES, n=1000, num_classes=10, shard_size=100)
    pieces = [Counter(classes_of(samples.rows(shard)[0])) for shard in samples.shards]
    assert len(pieces) == 10
    assert all(piece == Counter(dict.fromkeys(range(10), 10)) for piece in pieces)
    rows = {
        (class_id, seed)
        for mixtures, seeds in map(samples.rows, samples.shards)
        for class_id, seed in zip(classes_of(mixtures), seeds, strict=True)
    }
    assert len(rows) == 1000


def test_one_class_has_its_seeds_in_a_row() -> None:
    samples = replace(SAMPLES, class_id=2, n=5)
    assert samples.rows(0) == ([{2: 1.0}] * 4, [5, 6, 7, 8])
    assert samples.rows(1) == ([{2: 1.0}], [9])


def test_mixture_is_the_same_in_all_and_its_shares_are_the_labels(tmp_path: Path) -> None:
    samples = replace(SAMPLES, class_id="0:0.25,2:0.75", n=5)
    assert samples.rows(0) == ([{0: 0.25, 2: 0.75}] * 4, [5, 6, 7, 8])
    write_one_file(tmp_path / "mixed.npz", samples, Painter(), nothing)
    with np.load(tmp_path / "mixed.npz", allow_pickle=False) as mixed:
        images, shares = mixed["arr_0"], mixed["arr_1"]
    assert (shares.dtype, shares.tolist()) == (np.float32, [[0.25, 0.0, 0.75]] * 5)
    assert images[:, 0, 0, 1].tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(InvalidInput, match=r"class_id '0:0.25,2:0.75', not 2"):
        write_shards(
            mixed_folder(tmp_path, samples), replace(samples, class_id=2), Painter(), nothing
        )


def mixed_folder(folder: Path, samples: Samples) -> Path:
    write_shards(folder / "shards", samples, Painter(), nothing)
    return folder / "shards"


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, calls: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_shards(whole, SAMPLES, Painter(), nothing)
    with pytest.raises(KeyboardInterrupt):
        write_shards(broken, SAMPLES, Painter(calls), nothing)
    assert len(list(broken.glob("*.npz"))) == calls
    there: list[int] = []
    painter = Painter()
    made = write_shards(broken, SAMPLES, painter, there.append)
    assert hashes(broken) == hashes(whole)
    assert made == painter.rows == 11 - 4 * calls
    assert there == [4] * calls


def test_interrupted_file_goes_on_too(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    write_one_file(first, SAMPLES, Painter(), nothing)
    with pytest.raises(KeyboardInterrupt):
        write_one_file(second, SAMPLES, Painter(2), nothing)
    assert not second.exists()
    assert write_one_file(second, SAMPLES, Painter(), nothing) == 3
    assert sha256_of(first) == sha256_of(second)


def test_joined_file_is_what_numpy_writes(tmp_path: Path) -> None:
    samples = replace(SAMPLES, shard_size=100)
    write_shards(tmp_path / "shards", samples, Painter(), nothing)
    join_shards(tmp_path / "shards", samples, tmp_path / "joined.npz")
    with (
        np.load(tmp_path / "shards" / shard_name(0)) as shard,
        np.load(tmp_path / "joined.npz") as one,
    ):
        for name in ("arr_0", "arr_1"):
            assert np.array_equal(shard[name], one[name])
            assert shard[name].dtype == one[name].dtype


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 12), ("seed", 6), ("truncation_psi", 0.5), ("model", "toy@ba9876543210"),
     ("class_id", 1), ("precision", "fp16"), ("shard_size", 5), ("batch", 8)],
)  # fmt: skip
def test_changed_request_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    write_shards(tmp_path / "shards", SAMPLES, Painter(), nothing)
    before = hashes(tmp_path / "shards")
    with pytest.raises(InvalidInput, match=f"{name} .*, not {value!r}"):
        write_shards(tmp_path / "shards", replace(SAMPLES, **{name: value}), Painter(), nothing)
    assert hashes(tmp_path / "shards") == before


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not empty"):
        write_shards(tmp_path, SAMPLES, Painter(), nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}'])
def test_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(InvalidInput, match="was begun with"):
        write_shards(tmp_path, SAMPLES, Painter(), nothing)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, SAMPLES, Painter(), nothing)
    with (tmp_path / INDEX_NAME).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InvalidInput, match="Another process"):
            write_shards(tmp_path, SAMPLES, Painter(), nothing)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    write_shards(tmp_path, SAMPLES, Painter(), nothing)
    half = tmp_path / f".{shard_name(2)}.99999.tmp"
    half.write_bytes(b"half")
    write_shards(tmp_path, SAMPLES, Painter(), nothing)
    assert not half.exists()


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", SAMPLES, Painter(), nothing)
    (tmp_path / "shards" / shard_name(1)).write_bytes(b"not a zip")
    with pytest.raises(ArtefactError, match=shard_name(1)):
        join_shards(tmp_path / "shards", SAMPLES, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("values", [{"n": 0}, {"shard_size": 0}, {"seed": -1}, {"seed": 2**32 - 3}])
def test_impossible_request_is_refused(values: Any) -> None:
    with pytest.raises(InvalidInput):
        replace(SAMPLES, **values)


def test_request_is_kept_beside_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, SAMPLES, Painter(), nothing)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert (index["model"], index["n"], index["class_id"]) == ("toy@0123456789ab", 11, None)
