"""Engines as `export.trt` and `export.gpu_check` get them: out of the cache or newly built, and held to their graph."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.contract import STUDIO_INPUT_NAMES
from cat_serve.errors import ArtefactError, InvalidInput, MissingDependency, ParityError
from cat_serve.files import written_whole
from export.trt.cache import Entry
from export.trt.options import BuildOptions, Profile, equivalent_command, load_package
from export.trt.record import engine_key, read_graph, read_record, source_of, write_record

if TYPE_CHECKING:
    from export.trt.cache import EngineCache
    from export.trt.runner import TrtEngine

TIMED_REPEATS = 20


def built(graph: Path, options: BuildOptions, cache: EngineCache) -> tuple[Entry, bool]:
    """Return the engine of a graph, and whether it was in the cache; parity is not measured yet if it was not.

    Raises:
        ArtefactError: no such graph, or one that cannot be parsed or built.
        MissingDependency: no such builder, or no GPU where one is needed.
    """
    from export.trt.build import compile_graph, gpu_for, this_platform
    from export.trt.parity import not_measured

    facts = read_graph(graph)
    trt = load_package(options.builder)
    key = engine_key(facts, options, trt.__version__, gpu_for(options), this_platform())
    if (entry := cache.find(key)) is not None:
        return entry, True
    plan = compile_graph(trt, graph, options)
    shapes = {name: tensor["shape"][1:] for name, tensor in plan.inputs.items()}
    command = equivalent_command(graph, cache.path(key), options, shapes, trt.__version__)
    record = {
        "source": source_of(graph, facts),
        "graph": {graph.name: facts.sha256} | facts.external,
        "inputs": plan.inputs,
        "outputs": plan.outputs,
        "command": command,
        "timing": {"build_s": plan.build_s, "latency": None},
        "parity": not_measured("it was not asked for"),
    }  # fmt: skip
    return cache.add(key, plan.data, record), False


def refitted(graph: Path, stripped: Path, cache: EngineCache) -> tuple[Entry, bool]:
    """Return an engine, built without weights, with those of its graph, and whether it was in the cache.

    Raises:
        InvalidInput: the engine has its weights, or was built from another graph.
        ArtefactError: the engine was changed, or takes no weights.
        MissingDependency: no such builder, or no GPU.
    """
    import time

    from export.trt.build import refit_plan
    from export.trt.parity import not_measured

    record = read_record(stripped)
    key, options = record["key"], record["key"]["options"]
    if not options["strip_weights"] or key["refitted"]:
        raise InvalidInput(
            f"{stripped.name} has its weights.", hint="refit what --strip-weights built"
        )
    if asdict(read_graph(graph)) != key["graph"]:
        raise InvalidInput(
            f"{stripped.name} was not built from {graph.name}.",
            hint=f"its graph was called {record['source']['graph']}; only the same weights fit",
        )
    key = key | {"refitted": True}
    if (entry := cache.find(key)) is not None:
        return entry, True
    started = time.perf_counter()
    trt = load_package(options["builder"])
    data = refit_plan(trt, stripped, graph, options["version_compatible"])
    kept = {name: record[name] for name in ("source", "graph", "inputs", "outputs", "command")}
    timing = {"refit_s": round(time.perf_counter() - started, 1), "latency": None}
    facts = kept | {"timing": timing, "parity": not_measured("it was not asked for")}
    return cache.add(key, data, facts), False


def proven(entry: Entry, graph: Path, cache: EngineCache, classes: int) -> Entry:
    """Return an engine that was held to its graph and timed, or whose record says why it was not.

    Raises:
        ParityError: it differs beyond the budget of its precision; it is removed from the cache.
    """
    from export.trt.parity import not_measured

    if entry.record["parity"]["measured"]:
        return entry
    if reason := _why_not(entry, classes):
        return entry.update(parity=not_measured(reason))
    from export.trt.runner import open_engine

    try:
        engine = open_engine(entry.engine)
    except MissingDependency as error:
        return entry.update(parity=not_measured(error.message))
    except ArtefactError as error:
        if entry.record["key"]["gpu"] is not None:
            raise
        return entry.update(parity=not_measured(error.message))  # built for other GPUs on purpose
    try:
        parity, latency = _measured(entry, graph, engine, classes)
    finally:
        engine.close()
    if not parity["passed"]:
        cache.remove(entry)
        raise ParityError(" ".join(parity["failures"]), hint="the engine was not kept")
    return entry.update(parity=parity, timing=entry.record["timing"] | {"latency": latency})


def _why_not(entry: Entry, classes: int) -> str | None:
    """Return why an engine is not compared with its graph, if it is not to be."""
    if classes == 0:
        return "--parity-classes 0"
    if entry.record["key"]["options"]["strip_weights"] and not entry.record["key"]["refitted"]:
        return "it has no weights"
    if entry.record["source"]["model"] is None:
        return "no manifest beside the graph says which classes and latents its model has"
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime, the reference, is not installed"
    return None


def _measured(
    entry: Entry, graph: Path, engine: TrtEngine, classes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the report of the comparison, and how long the engine takes for its profile's batches."""
    from export.trt import latency
    from export.trt.parity import Subject, measure_parity, probe_of

    record = entry.record
    batch = probe_of(record["source"], is_studio(record), classes)
    precision = record["key"]["graph"]["precision"]
    subject = Subject(
        f"the engine of {graph.name}", engine, precision,
        engine.min_batch, engine.max_batch, engine.opt_batch,
    )  # fmt: skip
    parity = measure_parity(subject, graph, batch)
    sizes = sorted(set(profile_of(record).sizes))
    timed = latency.measure(engine, batch, sizes, repeats=TIMED_REPEATS)
    return parity, [each.to_dict() for each in timed]


def copied(entry: Entry, graph: Path, out: Path) -> Entry:
    """Copy an engine and its record out of the cache."""
    with written_whole(out) as temporary:
        shutil.copyfile(entry.engine, temporary)
    record = dict(entry.record)
    record["command"] = record["command"].replace(str(entry.engine), str(out))
    write_record(out, record)
    return Entry(out, record)


def is_studio(record: dict[str, Any]) -> bool:
    """Say whether an engine is of a studio graph."""
    return set(record["inputs"]) == set(STUDIO_INPUT_NAMES)


def profile_of(record: dict[str, Any]) -> Profile:
    """Return the batches that an engine was built for."""
    return Profile(**record["key"]["options"]["profile"])


def outdated(entry: Entry) -> str | None:
    """Return why the builder that is installed would never use an engine; None if it would, or is not here."""
    options = entry.record["key"]["options"]
    try:
        here = load_package(options["builder"]).__version__
    except MissingDependency:
        return None
    built_by = entry.record["key"]["version"]
    return None if built_by == here else f"of {options['builder']} {built_by}, here {here}"


def summary(entry: Entry) -> dict[str, Any]:
    """Return what people want to know of an engine in a list."""
    record, key = entry.record, entry.record["key"]
    gpu = key["gpu"]["name"] if key["gpu"] else " ".join(key["options"]["compute_capabilities"])
    batches = "-".join(map(str, profile_of(record).sizes))
    return {
        "engine": entry.engine.name,
        "model": record["source"]["model"],
        "graph": record["source"]["graph"],
        "precision": key["graph"]["precision"],
        "batches": batches,
        "builder": f"{key['options']['builder']} {key['version']}",
        "gpu": gpu or "any",
        "size_bytes": record["engine"]["size_bytes"],
        "parity": record["parity"]["measured"],
    }
