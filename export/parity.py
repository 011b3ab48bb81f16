"""Compare the images of two forms of one model, and hold the difference to a budget."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cat_serve.contract import Output
from cat_serve.errors import ParityError
from export.probes import Engine, batch_invariant, duplicates_equal, pixels

ALMOST_ALL = 99.99
LEVELS = 256
MIDDLE = 127.5


@dataclass(frozen=True)
class Budget:
    """How far two forms may differ.

    Attributes:
        min_psnr_db: over all values.
        almost_all_levels: uint8 levels at the 99.99th percentile of all values.
        max_levels: levels of the worst value; None: it is reported, and does not decide.
        rows_levels: levels by which a row may change with its batch, where its bytes are not promised (on a GPU).
    """

    min_psnr_db: float
    almost_all_levels: int
    max_levels: int | None
    rows_levels: int


# A row that is not ok (a value was not finite) is beyond every budget. The rows go from exact to coarse: two forms
# are held to the lower one of their rows.
# fp32: only the order of sums differs. A value at a rounding edge moves by one level.
# tf32: rounds what goes into a product as fp16 does, but norms, sums and what layers pass on stay float32: half of
#       fp16's error, which is 6 dB and half the levels.
# fp16, bf16: every layer rounds what it passes on, and single values at edges in an image may move far.
# int8: 256 steps for each tensor. An error with the spread that 30 dB stands for (8 levels) has 99.99 % of its
#       values within 3.9 spreads. Whether images are worse for it is for `export.verify --budget full` to tell.
# precision       PSNR   99.99 %   worst   rows
BUDGETS = {
    "fp32": Budget(60.0,       1,      1,     1),
    "tf32": Budget(46.0,       4,   None,     2),
    "fp16": Budget(40.0,       8,   None,     4),
    "bf16": Budget(40.0,       8,   None,     4),
    "int8": Budget(30.0,      32,   None,     4),
}  # fmt: skip


def coarser(a: str, b: str) -> str:
    """Return that of two precisions which allows more."""
    return max(a, b, key=list(BUDGETS).index)


def rows_budget(precision: str, determinism: str) -> int:
    """Return by how many levels a row may change with its batch: not at all where `bytes` are promised."""
    return 0 if determinism == "bytes" else BUDGETS[precision].rows_levels


@dataclass(frozen=True)
class Difference:
    """What a comparison of two sets of uint8 images found.

    Attributes:
        psnr_db: over all values; infinite when they are equal.
        min_cosine: of the least similar image, its values taken as -1..1.
        share_differing: of all values.
        not_ok: rows that are not ok, of both together.
    """

    images: int
    psnr_db: float
    min_cosine: float
    almost_all_levels: float
    max_levels: int
    share_differing: float
    not_ok: int

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["psnr_db"] = None if math.isinf(self.psnr_db) else round(self.psnr_db, 2)
        return values


def compare(a: Output, b: Output) -> Difference:
    """Compare two outputs of the same inputs, image by image so that a thousand large ones fit in memory."""
    counts = np.zeros(LEVELS, dtype=np.int64)  # how many values differ by so many levels
    cosines = []
    for one, other in zip(pixels(a), pixels(b), strict=True):
        levels = np.abs(one.astype(np.int16) - other.astype(np.int16))
        counts += np.bincount(levels.ravel(), minlength=LEVELS)
        cosines.append(_cosine(one, other))
    total = int(counts.sum())
    mse = float((counts * np.arange(LEVELS) ** 2).sum()) / total
    almost_last = math.ceil((total - 1) * ALMOST_ALL / 100)
    return Difference(
        images=len(a.ok),
        psnr_db=math.inf if mse == 0 else 10 * math.log10(255**2 / mse),
        min_cosine=min(cosines),
        almost_all_levels=float(np.searchsorted(np.cumsum(counts), almost_last, side="right")),
        max_levels=int(np.flatnonzero(counts)[-1]),
        share_differing=1 - int(counts[0]) / total,
        not_ok=int((~a.ok).sum() + (~b.ok).sum()),
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two images as vectors of (byte - 127.5), never of length 0."""
    x, y = (image.ravel().astype(np.float64) - MIDDLE for image in (a, b))
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


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


def batch_report(engine: Engine, probe: Any, sizes: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """Return for each batch size how far, in levels, rows are from the same row alone, and equal rows apart."""
    if not sizes:
        return {}
    alone = batch_invariant(engine, probe, sizes)
    equal = duplicates_equal(engine, probe, sizes)
    return {
        str(n): {"against_alone_levels": alone[n], "equal_rows_levels": equal[n]} for n in sizes
    }


def failed(
    difference: Difference,
    held_to: str,
    reports: list[dict[str, Any]],
    what: str = "The second form",
) -> list[str]:
    """Return a sentence for everything that is beyond its budget; `what` is what differs from the first form."""
    failures = []
    try:
        require(difference, held_to, what)
    except ParityError as error:
        failures.append(str(error))
    for report in reports:
        for size, levels in report["batches"].items():
            if max(levels.values()) > report["rows_budget_levels"]:
                failures.append(
                    f"In batches of {size}, rows of {report['name']} differ by {levels['against_alone_levels']} "
                    f"levels from the same rows alone, and equal rows by {levels['equal_rows_levels']}; "
                    f"{report['rows_budget_levels']} are allowed."
                )
    return failures
