"""Hold an engine to the graph that it was built from, run in ONNX Runtime on the CPU, by the one table of budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.parity import BUDGETS, batch_report, compare, failed, rows_budget
from export.probes import (
    MAX_CLASSES,
    RUN_BATCH,
    in_batches,
    invariance_sizes,
    probe_batch,
    rows,
    studio_probe,
)

if TYPE_CHECKING:
    from cat_serve.contract import Batch, StudioBatch
    from export.probes import Engine

DETERMINISM = "latent"  # TensorRT promises no bytes: rows may change with their batch


@dataclass(frozen=True)
class Subject:
    """An engine that is compared.

    Attributes:
        name: what people know it by, such as `the engine of model.onnx`.
        precision: a row of the budgets.
        min_batch, max_batch: rows that it takes at once.
        opt_batch: the rows that it was tuned for.
    """

    name: str
    run: Engine
    precision: str
    min_batch: int
    max_batch: int
    opt_batch: int = 1


def not_measured(reason: str) -> dict[str, Any]:
    """Return the report of a comparison that did not take place."""
    return {"measured": False, "reason": reason}


def probe_of(
    source: Mapping[str, Any], studio: bool, classes: int = MAX_CLASSES
) -> Batch | StudioBatch:
    """Return the fixed inputs of a model, as the record of its engine describes it."""
    batch = probe_batch(source["num_classes"], tuple(source["z_shape"]), classes)
    return studio_probe(batch) if studio else batch


def measure_parity(subject: Subject, graph: Path, batch: Any) -> dict[str, Any]:
    """Compare an engine with its graph, and its rows with themselves in other batches.

    Returns:
        The report: `passed`, `failures` in words, and every figure. Rows are compared across batches only if the
        engine takes one row alone.
    """
    from export.graphs import onnx_engine

    size = max(subject.min_batch, min(RUN_BATCH, subject.max_batch))
    batch = _whole_batches(batch, size) if subject.min_batch > 1 else batch
    difference = compare(
        in_batches(onnx_engine(graph), batch, size), in_batches(subject.run, batch, size)
    )
    sizes = (
        invariance_sizes(subject.max_batch, (subject.opt_batch,)) if subject.min_batch == 1 else ()
    )
    form = {
        "name": subject.name,
        "batches": batch_report(subject.run, batch, sizes),
        "rows_budget_levels": rows_budget(subject.precision, DETERMINISM),
    }
    failures = failed(
        difference, subject.precision, [form], what=subject.name[:1].upper() + subject.name[1:]
    )
    return {
        "measured": True,
        "passed": not failures,
        "failures": failures,
        "reference": f"onnxruntime {metadata.version('onnxruntime')}, CPUExecutionProvider",
        "held_to": subject.precision,
        "budget": asdict(BUDGETS[subject.precision]),
        "difference": difference.to_dict(),
        "batches": form["batches"],
        "rows_budget_levels": form["rows_budget_levels"],
    }


def _whole_batches(batch: Any, size: int) -> Any:
    """Repeat rows until they fill batches of `size`."""
    count = math.ceil(len(batch) / size) * size
    return rows(batch, np.arange(count) % len(batch))
