"""The loader gives the batches that its positions name, whatever is made ahead of them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cat_serve.errors import DataError
from training.data import Latents
from training.loader import Loader
from training.streams import shuffled_indices, stream_at

BATCH = 8


def by_hand(data: Latents, nimg: int) -> tuple[Tensor, Tensor]:
    index = shuffled_indices(5, len(data), nimg, BATCH)
    return data.batch(index, stream_at(5, "posterior", nimg))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_are_those_of_their_position(latents: Latents, ahead: int) -> None:
    """In a row, then somewhere else (a resumed run), then back."""
    with Loader(latents, 5, BATCH, ahead=ahead) as loader:
        for nimg in (0, 8, 16, 24, 32, 800, 808, 8):
            batch, (x, y) = loader.at(nimg), by_hand(latents, nimg)
            assert torch.equal(batch.x_real, x), nimg
            assert torch.equal(batch.y, y), nimg
            assert batch.photographs is None


def test_shares_put_together_are_the_batch(latents: Latents) -> None:
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        with Loader(latents, 5, BATCH, rows) as loader:
            parts.append(loader.at(16))
    x, y = by_hand(latents, 16)
    assert torch.equal(torch.cat([part.x_real for part in parts]), x)
    assert torch.equal(torch.cat([part.y for part in parts]), y)


class Seen:
    """Photographs that note who asked for them, in which thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], str]] = []

    def batch(self, indices: Tensor) -> Tensor:
        self.asked.append((indices.tolist(), threading.current_thread().name))
        return indices.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_photographs_are_those_of_the_latents_and_made_ahead(latents: Latents) -> None:
    seen = Seen()
    with Loader(latents, 5, BATCH, slice(2, 5), photographs=seen, ahead=2, threads=1) as loader:
        batch = loader.at(8)
        expected = shuffled_indices(5, len(latents), 8, BATCH)[2:5]
        assert batch.photographs is not None
        assert batch.photographs[:, 0, 0, 0].tolist() == expected.tolist()
        deadline = time.monotonic() + 20
        while len(seen.asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(seen.asked) == 3  # the one asked for, and two beyond it
    assert all(name.startswith("loader") for _, name in seen.asked)


def test_failure_comes_to_whoever_asks_for_that_batch(latents: Latents) -> None:
    class Broken(Seen):
        def batch(self, indices: Tensor) -> Tensor:
            raise DataError("a changed photograph")

    with (
        Loader(latents, 5, BATCH, photographs=Broken()) as loader,
        pytest.raises(DataError, match="a changed photograph"),
    ):
        loader.at(0)


def test_threads_end_with_the_loader(latents: Latents) -> None:
    with Loader(latents, 5, BATCH) as loader:
        first = loader.at(0)
        assert any(t.name.startswith("loader") for t in threading.enumerate())
    assert not any(t.name.startswith("loader") for t in threading.enumerate())
    assert torch.equal(loader.at(0).x_real, first.x_real)  # without them


def test_shard_that_was_cut_while_open_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    data = Latents(folder)
    os.truncate(folder / data.index.shards[0], 1000)
    with pytest.raises(DataError, match="has become shorter"):
        data.moments(torch.arange(len(data)))


def test_files_are_closed_with_the_data(prepared: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Latents(prepared)
    assert len(os.listdir("/proc/self/fd")) == before
