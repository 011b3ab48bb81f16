"""The gate: a graph keeps its name only if it gives the images that torch gives in float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.graphs import Graph, onnx_engine
from export.parity import compare, require
from export.probes import (
    MAX_CLASSES,
    RUN_BATCH,
    Count,
    batch_invariant,
    counting,
    ignore,
    in_batches,
    invariance_sizes,
    probe_batch,
    rows,
    rows_alone,
    studio_probe,
)

if TYPE_CHECKING:
    from cat_serve.contract import Batch, Output, Precision, StudioBatch
    from cat_serve.manifest import Determinism
    from cat_serve.model.checkpoint import Checkpoint

SINGLE_CLASS_ROWS = slice(None, None, 2)  # of `studio_probe`


@dataclass
class Gate:
    """Holds the fixed inputs and what torch and the graphs that passed made of them.

    Args:
        checkpoint: whose float32 module is the reference.
        max_batch: no batch is larger than that.
        classes: how many classes are compared; each costs three images in every form.
    """

    checkpoint: Checkpoint
    max_batch: int
    classes: int = MAX_CLASSES
    passed: dict[Precision, Output] = field(default_factory=dict)
    references: dict[bool, Output] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.checkpoint.generator.config
        self.batch = probe_batch(config.num_classes, config.z_shape, self.classes)

    def inputs(self, studio: bool) -> Batch | StudioBatch:
        """Return the fixed inputs of a plain or a studio graph."""
        return studio_probe(self.batch) if studio else self.batch

    def images(self, studio: bool) -> int:
        """Return how many rows are run for one graph; torch's share is counted for each though it is run once."""
        batch = self.inputs(studio)
        sizes = invariance_sizes(self.max_batch)
        return 2 * len(batch) + rows_alone(batch, sizes) + sum(sizes)

    def reference(self, studio: bool, count: Count) -> Output:
        """Return what torch makes of the inputs in float32; computed once."""
        if studio in self.references:
            count(len(self.inputs(studio)))
        else:
            from cat_serve.model.fused import FusedModel, StudioModel

            model = (StudioModel if studio else FusedModel).from_checkpoint(self.checkpoint)
            self.references[studio] = in_batches(
                counting(model.run, count), self.inputs(studio), self._run_batch
            )
        return self.references[studio]

    def prove(self, graph: Graph, path: Path, count: Count = ignore) -> dict[str, Any]:
        """Compare a graph with torch, and a studio graph with a plain one too; return the report.

        Args:
            count: is told of every row that was run.

        Raises:
            ParityError: beyond the budget of the graph's precision.
        """
        batch, engine = self.inputs(graph.is_studio), counting(onnx_engine(path), count)
        output = in_batches(engine, batch, self._run_batch)
        difference = compare(self.reference(graph.is_studio, count), output)
        require(difference, graph.precision, f"The graph {graph.name}")
        report: dict[str, Any] = {
            "reference": f"torch {metadata.version('torch')}, float32",
            "candidate": f"onnxruntime {metadata.version('onnxruntime')}, CPUExecutionProvider",
            "difference": difference.to_dict(),
            "classes": len(np.unique(self.batch.class_id)),
            "truncation_psi": sorted(set(self.batch.truncation_psi.tolist())),
        }
        if graph.is_studio:
            report["plain"] = self._compare_with_plain(graph, output)
        else:
            self.passed[graph.precision] = output
        worst = batch_invariant(engine, batch, invariance_sizes(self.max_batch))
        report["batch_invariance_max_levels"] = {
            str(size): levels for size, levels in worst.items()
        }
        return report

    @property
    def _run_batch(self) -> int:
        return min(RUN_BATCH, self.max_batch)

    def _compare_with_plain(self, graph: Graph, output: Output) -> dict[str, Any]:
        """Hold a studio's images of single classes to those of the plain graph.

        Of one precision both do the same arithmetic, so float32's budget holds; else that of fp16.
        """
        same = graph.precision in self.passed
        precision = graph.precision if same else next(iter(self.passed))
        of = self.passed[precision]
        difference = compare(_single(of), _single(output))
        require(difference, "fp32" if same else "fp16", f"Against the plain graph, {graph.name}")
        return {"precision": precision, "difference": difference.to_dict()}


def _single(output: Output) -> Output:
    """Return the images, without other stages, of the rows that are a single class in both forms."""
    from cat_serve.contract import Output

    return rows(Output(output.images, output.ok), SINGLE_CLASS_ROWS)


def determinism(report: dict[str, Any]) -> Determinism:
    """Return `bytes` if batches were compared and no row changed with the size of its batch."""
    worst = report["batch_invariance_max_levels"].values()
    return "bytes" if worst and not any(worst) else "latent"
