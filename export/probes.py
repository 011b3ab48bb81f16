"""Fixed inputs for comparisons, and engines run on them: whole, in pieces, alone and repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cat_serve.contract import STUDIO_SLOTS, Batch, Output, StudioBatch, StudioOutput
from cat_serve.latents import latents_from_seeds

PSI_VALUES = (1.0, 0.7, 0.0)
MAX_CLASSES = 32
MIXTURE = (0.5, 0.3, 0.2, 0.0)
INVARIANCE_SIZES = (2, 3, 7, 16)
RUN_BATCH = 16


@dataclass(frozen=True)
class Seeded:
    """Inputs by seed: every form of a model can be asked for them, one behind HTTP too.

    Attributes:
        seed: int64 [B], 0..2^32-1.
        class_id: int64 [B].
        truncation_psi: float32 [B].
    """

    seed: np.ndarray
    class_id: np.ndarray
    truncation_psi: np.ndarray

    def __len__(self) -> int:
        return len(self.seed)

    def batch(self, z_shape: Sequence[int]) -> Batch:
        """Return the same rows with their latents, float32 [B, *z_shape]."""
        z = latents_from_seeds(self.seed.tolist(), z_shape)
        return Batch(z, self.class_id, self.truncation_psi)


Engine = Callable[[Any], Output]
"""Runs a Batch, a StudioBatch if it is a studio graph's, or a Seeded if it is a form's."""

Count = Callable[[int], object]
"""Is told of rows that were run."""

AnyBatch = TypeVar("AnyBatch", bound=Batch | StudioBatch | Seeded)
Rows = TypeVar("Rows", bound=Batch | StudioBatch | Seeded | Output)


def seeded_probe(num_classes: int, classes: int = MAX_CLASSES) -> Seeded:
    """Return fixed inputs: up to `classes` classes spread over all, each at three values of psi."""
    chosen = np.unique(np.linspace(0, num_classes - 1, min(num_classes, classes)).astype(int))
    class_id = np.repeat(chosen, len(PSI_VALUES)).astype(np.int64)
    psi = np.tile(np.array(PSI_VALUES, dtype=np.float32), len(chosen))
    return Seeded(np.arange(len(class_id)), class_id, psi)


def many_images(num_classes: int, count: int) -> Seeded:
    """Return `count` rows at psi 1 with the seeds from 0 on, the classes evenly and in order."""
    class_id = np.arange(count) * num_classes // count
    return Seeded(np.arange(count), class_id, np.ones(count, dtype=np.float32))


def probe_batch(num_classes: int, z_shape: tuple[int, ...], classes: int = MAX_CLASSES) -> Batch:
    """Return the rows of `seeded_probe` with their latents."""
    return seeded_probe(num_classes, classes).batch(z_shape)


def studio_probe(batch: Batch) -> StudioBatch:
    """Return the same rows for the studio: every second is one class, the others mix three."""
    probe = StudioBatch.of(batch)
    for row in range(1, len(batch), 2):
        probe.class_id[row] = np.roll(batch.class_id, -row)[np.arange(STUDIO_SLOTS) % len(batch)]
        probe.class_weight[row] = MIXTURE
    return probe


def rows(of: Rows, which: slice | np.ndarray) -> Rows:
    """Return some rows of a batch or of an output."""
    values = {field.name: getattr(of, field.name)[which] for field in dataclasses.fields(of)}
    return dataclasses.replace(of, **values)


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several batches, or outputs, of one kind as one."""
    names = [field.name for field in dataclasses.fields(parts[0])]
    return type(parts[0])(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def in_batches(engine: Engine, batch: AnyBatch, size: int) -> Output:
    """Run `batch` in pieces of `size` rows (the last may be smaller)."""
    return joined([engine(rows(batch, slice(i, i + size))) for i in range(0, len(batch), size)])


def pixels(output: Output) -> np.ndarray:
    """Return every value that an output shows, uint8 [B, ...]; a studio's last stage is its image."""
    return output.stage_images if isinstance(output, StudioOutput) else output.images


def invariance_sizes(max_batch: int, tuned: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the sizes of batches whose rows are compared with rows run alone; the last is the largest.

    Args:
        tuned: sizes that an engine was tuned for.
    """
    sizes = {size for size in (*INVARIANCE_SIZES, *tuned) if 1 < size < max_batch}
    return (*sorted(sizes), max_batch) if max_batch > 1 else ()


def rows_alone(batch: AnyBatch, sizes: Sequence[int]) -> int:
    """Return how many rows `batch_invariant` runs alone."""
    return min(len(batch), max(sizes, default=1))


def batch_invariant(engine: Engine, batch: AnyBatch, sizes: Sequence[int]) -> dict[int, int]:
    """Return, for each batch size, the worst difference in levels from every row run alone.

    A batch larger than the probe repeats it, so identical rows of one batch are compared too.
    """
    needed = rows_alone(batch, sizes)
    alone = pixels(in_batches(engine, rows(batch, slice(needed)), 1))
    worst = {}
    for size in sizes:
        index = np.arange(size) % needed
        worst[size] = _levels(pixels(engine(rows(batch, index))), alone[index])
    return worst


def duplicates_equal(engine: Engine, batch: AnyBatch, sizes: Sequence[int]) -> dict[int, int]:
    """Return, for each batch size, the worst difference in levels between equal rows of one batch.

    Each batch has the first rows of `batch` twice or three times: a b c a b c a for a size of seven.
    """
    worst = {}
    for size in sizes:
        index = np.arange(size) % min(len(batch), max(1, size // 2))
        together = pixels(engine(rows(batch, index)))
        worst[size] = _levels(together, together[index])
    return worst


def _levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def ignore(rows: int) -> None:
    """Count nothing."""


def counting(run: Engine, count: Count) -> Engine:
    """Return an engine that also counts its rows."""

    def counted(batch: Any) -> Output:
        output = run(batch)
        count(len(batch))
        return output

    return counted
