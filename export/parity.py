"""Compare the images of two forms of one model, and hold the difference to a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cat_serve.contract import Batch, Output
from cat_serve.errors import ParityError
from cat_serve.latents import latents_from_seeds

Engine = Callable[[Batch], Output]

PSI_VALUES = (1.0, 0.7, 0.0)
MAX_CLASSES = 32


@dataclass(frozen=True)
class Budget:
    """How far two forms may differ: uint8 levels, and dB over all pixels."""

    min_psnr_db: float
    max_levels: int


# precision       PSNR   levels
BUDGETS = {
    "fp32": Budget(60.0,      1),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """What a comparison of two sets of uint8 images found; PSNR is infinite when they are equal."""

    images: int
    psnr_db: float
    max_levels: int
    share_differing: float
    not_ok: int

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["psnr_db"] = None if math.isinf(self.psnr_db) else round(self.psnr_db, 2)
        return values


def probe_batch(num_classes: int, z_shape: tuple[int, ...]) -> Batch:
    """Return fixed inputs: up to 32 classes spread over all, each at three values of psi."""
    classes = np.unique(np.linspace(0, num_classes - 1, min(num_classes, MAX_CLASSES)).astype(int))
    class_id = np.repeat(classes, len(PSI_VALUES)).astype(np.int64)
    psi = np.tile(np.array(PSI_VALUES, dtype=np.float32), len(classes))
    return Batch(latents_from_seeds(range(len(class_id)), z_shape), class_id, psi)


def in_batches(engine: Engine, batch: Batch, size: int) -> Output:
    """Run `batch` in pieces of `size` rows (the last may be smaller)."""
    outputs = [engine(rows(batch, slice(i, i + size))) for i in range(0, len(batch), size)]
    return Output(
        np.concatenate([output.images for output in outputs]),
        np.concatenate([output.ok for output in outputs]),
    )


def rows(batch: Batch, which: slice) -> Batch:
    """Return some rows of a batch."""
    return Batch(batch.z[which], batch.class_id[which], batch.truncation_psi[which])


def compare(a: Output, b: Output) -> Difference:
    """Compare two outputs of the same inputs."""
    levels = np.abs(a.images.astype(np.int16) - b.images.astype(np.int16))
    mse = float(np.square(levels, dtype=np.float64).mean())
    return Difference(
        images=len(levels),
        psnr_db=math.inf if mse == 0 else 10 * math.log10(255**2 / mse),
        max_levels=int(levels.max()),
        share_differing=float((levels > 0).mean()),
        not_ok=int((~a.ok).sum() + (~b.ok).sum()),
    )


def require(difference: Difference, precision: str, what: str) -> None:
    """Refuse a difference beyond the budget of `precision`.

    Raises:
        ParityError: with the figures and the budget.
    """
    budget = BUDGETS[precision]
    if (
        difference.not_ok
        or difference.max_levels > budget.max_levels
        or difference.psnr_db < budget.min_psnr_db
    ):
        raise ParityError(
            f"{what} differs too much: PSNR {difference.psnr_db:.2f} dB, worst pixel "
            f"{difference.max_levels} levels, {difference.not_ok} rows not ok.",
            hint=f"{precision} allows PSNR >= {budget.min_psnr_db} dB and {budget.max_levels} levels",
        )


def batch_invariant(engine: Engine, batch: Batch, sizes: tuple[int, ...]) -> dict[int, int]:
    """Return, for each batch size, the worst difference in levels from every row run alone."""
    alone = in_batches(engine, batch, 1)
    return {size: compare(alone, in_batches(engine, batch, size)).max_levels for size in sizes}
