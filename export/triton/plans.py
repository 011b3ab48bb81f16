"""TensorRT plans for Triton, held to the records that `export.trt` writes beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cat_serve.errors import ArtefactError
from cat_serve.manifest import Artefact
from export.triton.config import PLAN_FILE
from export.triton.options import EngineOptions
from export.trt.record import read_record


def require_plans(artefact: Artefact, options: EngineOptions) -> None:
    """Refuse plans that are not there, or that Triton could not serve as configured.

    Raises:
        ArtefactError: names the plan, what is wrong with it, and how to build it.
    """
    graph, described = artefact.graph(options.precision)
    largest = options.batching.largest(artefact.manifest.max_batch)
    for capability, name in (options.plans or {"": PLAN_FILE}).items():
        plan = artefact.folder / name
        gpu = f"a GPU of compute capability {capability}" if capability else "a GPU of its type"
        build = f"on {gpu}: python -m export.trt {graph} --max-batch {largest} --out {plan}"
        if not plan.is_file():
            raise ArtefactError(f"There is no plan {plan}.", hint=build)
        wrong = complaint(read_record(plan), described.sha256, graph, largest, capability)
        if wrong is not None:
            raise ArtefactError(f"The plan {name} {wrong}.", hint=f"build it again {build}")


def complaint(
    record: Mapping[str, Any], graph_sha256: str, graph: Path, largest: int, capability: str
) -> str | None:
    """Return what is wrong with a plan by its record, if anything is."""
    key = record["key"]
    options, gpu = key["options"], key["gpu"]
    if options["builder"] != "tensorrt":
        return f"is of {options['builder']}, which Triton does not run"
    if key["graph"]["sha256"] != graph_sha256:
        return f"was not built from this {graph.name}"
    if options["strip_weights"] and not key["refitted"]:
        return "has no weights"
    if (most := options["profile"]["max_batch"]) < largest:
        return f"takes {most} rows at most, not {largest}"
    built_for = gpu["compute_capability"]
    if capability and built_for != capability and options["hardware_compatibility"] == "none":
        return f"was built for compute capability {built_for}, not {capability}"
    return None
