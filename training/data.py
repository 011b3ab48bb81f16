"""Prepared data: posterior moments of the VAE with their labels, in shards beside an index."""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cat_serve.errors import DataError
from cat_serve.files import write_text

INDEX_NAME = "index.json"
LABELS_NAME = "labels.npy"
_TUPLES = ("latents_mean", "latents_std", "class_names", "shards")
PREPARE_AGAIN = "run python -m training.prepare again"


@dataclass(frozen=True)
class Index:
    """What `index.json` says.

    Attributes:
        vae_sha256: hash of the VAE (`cat_serve.model.vae.vae_sha256`); `train` refuses another VAE's latents.
        latents_mean, latents_std: per channel; the generator's latents are (posterior - mean) / std.
        shards: file names in order; each float16 [N, 2C, H, W], mean then standard deviation.
        images: where the photographs are, so that a teacher can see them: source, split, and how they were laid out.
        fingerprint: hash over what the shards were made from: VAE, labels and photographs. Not over the shards
            themselves, since another processor may round a latent differently.
    """

    vae_sha256: str
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    class_names: tuple[str, ...]
    latent_channels: int
    latent_size: int
    count: int
    shards: tuple[str, ...]
    images: dict[str, Any]
    fingerprint: str

    def save(self, folder: Path) -> None:
        write_text(folder / INDEX_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Index:
        path = folder / INDEX_NAME
        if not path.is_file():
            raise DataError(
                f"{folder} holds no prepared data (no {INDEX_NAME}).",
                hint="make it with: python -m training.prepare --help",
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            lists = {key: tuple(values[key]) for key in _TUPLES}
            return cls(**(values | lists))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error!r}.", hint=PREPARE_AGAIN) from error


class Latents:
    """All moments, read from their shards; every visit draws mean + std * n, then standardises each channel.

    Shards are opened as maps, but rows are read with `preadv`: a map reads 128 kB around every row of 16, which costs
    ten times the time on a cold disk (`benchmarks/loading.py`), and holds Python's lock while it waits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index.load(folder)
        try:
            shards = [np.load(folder / name, mmap_mode="r") for name in self.index.shards]
            self.labels = torch.from_numpy(np.load(folder / LABELS_NAME))
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise DataError(f"{folder} is damaged: {error}", hint=PREPARE_AGAIN) from error
        self._shift = torch.tensor(self.index.latents_mean).view(-1, 1, 1)
        self._scale = 1 / torch.tensor(self.index.latents_std).view(-1, 1, 1)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        if self._starts[-1] != self.index.count or len(self.labels) != self.index.count:
            raise DataError(
                f"{folder} is incomplete: {self._starts[-1]} latents and {len(self.labels)} labels, "
                f"{self.index.count} in the index.",
                hint=PREPARE_AGAIN,
            )
        self._row = np.empty((0, *shards[0].shape[1:]), shards[0].dtype)
        self._offsets = [shard.offset for shard in shards]
        self._descriptors = [os.open(folder / name, os.O_RDONLY) for name in self.index.shards]
        weakref.finalize(self, _close, self._descriptors)

    def __len__(self) -> int:
        return self.index.count

    def moments(self, indices: Tensor) -> Tensor:
        """Return float32 [B, 2C, H, W] for int64 indices [B].

        Raises:
            DataError: a shard has become shorter since it was opened.
        """
        at = indices.numpy()
        shard_of = np.searchsorted(self._starts, at, side="right") - 1
        rows = np.empty((len(at), *self._row.shape[1:]), self._row.dtype)
        size = rows[:1].nbytes
        buffer = rows.view(np.uint8).reshape(-1).data
        places = zip(shard_of.tolist(), (at - self._starts[shard_of]).tolist(), strict=True)
        for number, (shard, row) in enumerate(places):
            part = buffer[number * size : (number + 1) * size]
            offset = self._offsets[shard] + row * size
            if os.preadv(self._descriptors[shard], [part], offset) != size:
                name = self.folder / self.index.shards[shard]
                raise DataError(f"{name} has become shorter.", hint=PREPARE_AGAIN)
        return torch.from_numpy(rows).float()

    def batch(
        self, indices: Tensor, noise: torch.Generator, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Draw latents float32 [B, C, H, W] and give their labels int64 [B].

        Args:
            rows: read and return these alone; what they draw is what they draw in the whole batch.
        """
        mean, std = self.moments(indices[rows]).chunk(2, dim=1)
        drawn = torch.randn(len(indices), *mean.shape[1:], generator=noise)
        x = mean + std * drawn[rows]
        return (x - self._shift) * self._scale, self.labels[indices[rows]]


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)
