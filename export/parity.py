"""Compare the images of two forms of one model, and hold the difference to a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from cat_serve.contract import STUDIO_SLOTS, Batch, Output, StudioBatch, StudioOutput
from cat_serve.errors import ParityError
from cat_serve.latents import latents_from_seeds

Engine = Callable[[Any], Output]
"""Runs a Batch, or a StudioBatch if it is a studio graph's."""

AnyBatch = TypeVar("AnyBatch", bound=Batch | StudioBatch)
Rows = TypeVar("Rows", bound=Batch | StudioBatch | Output)

PSI_VALUES = (1.0, 0.7, 0.0)
MAX_CLASSES = 32
MIXTURE = (0.5, 0.3, 0.2, 0.0)
ALMOST_ALL = 99.99


@dataclass(frozen=True)
class Budget:
    """How far two forms may differ.

    Attributes:
        min_psnr_db: over all values.
        almost_all_levels: uint8 levels at the 99.99th percentile of all values.
        max_levels: levels of the worst value; None: it is reported, and does not decide.
    """

    min_psnr_db: float
    almost_all_levels: int
    max_levels: int | None


# A row that is not ok (a value was not finite) is beyond every budget.
# precision       PSNR   99.99 %   worst
BUDGETS = {
    "fp32": Budget(60.0,       1,      1),
    "fp16": Budget(40.0,       8,   None),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """What a comparison of two sets of uint8 images found; PSNR is infinite when they are equal."""

    images: int
    psnr_db: float
    almost_all_levels: float
    max_levels: int
    share_differing: float
    not_ok: int

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["psnr_db"] = None if math.isinf(self.psnr_db) else round(self.psnr_db, 2)
        return values


def probe_batch(num_classes: int, z_shape: tuple[int, ...], classes: int = MAX_CLASSES) -> Batch:
    """Return fixed inputs: up to `classes` classes spread over all, each at three values of psi."""
    chosen = np.unique(np.linspace(0, num_classes - 1, min(num_classes, classes)).astype(int))
    class_id = np.repeat(chosen, len(PSI_VALUES)).astype(np.int64)
    psi = np.tile(np.array(PSI_VALUES, dtype=np.float32), len(chosen))
    return Batch(latents_from_seeds(range(len(class_id)), z_shape), class_id, psi)


def studio_probe(batch: Batch) -> StudioBatch:
    """Return the same rows for the studio: every second is one class, the others mix three."""
    probe = StudioBatch.of(batch)
    for row in range(1, len(batch), 2):
        probe.class_id[row] = np.roll(batch.class_id, -row)[np.arange(STUDIO_SLOTS) % len(batch)]
        probe.class_weight[row] = MIXTURE
    return probe


def in_batches(engine: Engine, batch: AnyBatch, size: int) -> Output:
    """Run `batch` in pieces of `size` rows (the last may be smaller)."""
    outputs = [engine(rows(batch, slice(i, i + size))) for i in range(0, len(batch), size)]
    names = [field.name for field in dataclasses.fields(outputs[0])]
    return type(outputs[0])(
        *(np.concatenate([getattr(output, name) for output in outputs]) for name in names)
    )


def rows(of: Rows, which: slice | np.ndarray) -> Rows:
    """Return some rows of a batch or of an output."""
    values = {field.name: getattr(of, field.name)[which] for field in dataclasses.fields(of)}
    return dataclasses.replace(of, **values)


def pixels(output: Output) -> np.ndarray:
    """Return every value that an output shows, uint8 [B, ...]; a studio's last stage is its image."""
    return output.stage_images if isinstance(output, StudioOutput) else output.images


def compare(a: Output, b: Output) -> Difference:
    """Compare two outputs of the same inputs."""
    levels = np.abs(pixels(a).astype(np.int16) - pixels(b).astype(np.int16))
    mse = float(np.square(levels, dtype=np.float64).mean())
    return Difference(
        images=len(levels),
        psnr_db=math.inf if mse == 0 else 10 * math.log10(255**2 / mse),
        almost_all_levels=float(np.percentile(levels, ALMOST_ALL, method="higher")),
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
    worst = math.inf if budget.max_levels is None else budget.max_levels
    if (
        difference.not_ok
        or difference.psnr_db < budget.min_psnr_db
        or difference.almost_all_levels > budget.almost_all_levels
        or difference.max_levels > worst
    ):
        raise ParityError(
            f"{what} differs too much: PSNR {difference.psnr_db:.2f} dB, {ALMOST_ALL} % of the values within "
            f"{difference.almost_all_levels:.0f} levels, the worst {difference.max_levels}, "
            f"{difference.not_ok} rows not ok.",
            hint=f"{precision} allows PSNR >= {budget.min_psnr_db} dB, {budget.almost_all_levels} levels for "
            f"{ALMOST_ALL} %, worst {worst}, and no row that is not ok"
            + ("; --decoder-precision fp32 is the more exact fp16" if precision == "fp16" else ""),
        )


def batch_invariant(engine: Engine, batch: AnyBatch, sizes: Sequence[int]) -> dict[int, int]:
    """Return, for each batch size, the worst difference in levels from every row run alone.

    A batch larger than the probe repeats it, so identical rows of one batch are compared too.
    """
    needed = min(len(batch), max(sizes, default=1))
    alone = in_batches(engine, rows(batch, slice(needed)), 1)
    worst = {}
    for size in sizes:
        index = np.arange(size) % needed
        together = pixels(engine(rows(batch, index))).astype(np.int16)
        worst[size] = int(np.abs(together - pixels(alone)[index]).max())
    return worst
