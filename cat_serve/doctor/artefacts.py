"""The chain of hashes from a checkpoint over its ONNX graphs to TensorRT engines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cat_serve.doctor.finding import Finding, Verdict
from cat_serve.errors import CatServeError
from cat_serve.files import sha256_of
from cat_serve.manifest import Artefact, load_artefact
from cat_serve.repository import choose_default, newest_versions
from cat_serve.settings import Settings

ENGINE_SUFFIXES = (".plan", ".engine")
ENGINE_CACHE = "CAT_SERVE_ENGINE_CACHE"
EXPORT = "python -m export.onnx"
BUILD = "python -m export.trt"


def load(repository: Path, settings: Settings) -> tuple[dict[str, Artefact], list[Finding]]:
    """Read every model of the repository; return those that are whole, and what was found."""
    artefacts: dict[str, Artefact] = {}
    findings = []
    for name, folder in newest_versions(repository).items():
        try:
            artefact = artefacts[name] = load_artefact(folder)
        except CatServeError as error:
            findings.append(Finding("model", name, Verdict.FAILED, error.message, error.hint))
            continue
        files = len(artefact.manifest.files)
        precisions = ", ".join(artefact.manifest.precisions) or "no graph"
        detail = (
            f"version {artefact.version}: {files} files have the manifest's hashes; {precisions}"
        )
        findings.append(Finding("model", name, Verdict.OK, detail))
    if not artefacts and not findings:
        findings.append(Finding("model", "repository", Verdict.FAILED, "there is no model in it",
                                "set --model-repository to a folder <model>/<version>/"))  # fmt: skip
    elif artefacts:
        findings.append(_default(artefacts, settings))
    return artefacts, findings


def _default(artefacts: Mapping[str, Artefact], settings: Settings) -> Finding:
    try:
        chosen = choose_default(artefacts, settings.model)
    except CatServeError as error:
        return Finding("model", "default", Verdict.LACKS, error.message, error.hint)
    return Finding("model", "default", Verdict.OK, chosen)


def chain(artefact: Artefact, repository: Path, settings: Settings) -> Iterator[Finding]:
    """Hold the checkpoint and the engines of a model to its manifest."""
    folder = settings.checkpoints or repository.parent / "checkpoints"
    yield _checkpoint(artefact, folder / f"{artefact.manifest.model}.safetensors")
    for engine in engines(artefact.folder):
        yield _engine(engine, artefact)


def engines(folder: Path) -> list[Path]:
    """Return the TensorRT engines in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in ENGINE_SUFFIXES)


def cached_engines(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Hold the engines of the cache to their records."""
    named = environ.get(ENGINE_CACHE)
    caches = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(caches) / "cat-serve" / "engines"
    for engine in engines(folder):
        yield _engine(engine, None)


def _checkpoint(artefact: Artefact, checkpoint: Path) -> Finding:
    model = artefact.manifest.model
    expected = artefact.manifest.source.get("checkpoint_sha256")
    if expected is None:
        return Finding("checkpoint", model, Verdict.NONE, "the manifest names none")
    if not checkpoint.is_file():
        return Finding("checkpoint", model, Verdict.NONE, "not here, and not needed to serve ONNX")
    got = sha256_of(checkpoint)
    if got != expected:
        return Finding(
            "checkpoint", model, Verdict.FAILED,
            f"sha256 {got[:12]}, and the graphs were exported from {expected[:12]}",
            f"restore it, or export it: {EXPORT} {checkpoint} --repository FOLDER",
        )  # fmt: skip
    return Finding("checkpoint", model, Verdict.OK, f"sha256 {got[:12]}, as in the manifest")


def _engine(engine: Path, artefact: Artefact | None) -> Finding:
    subject = engine.name if artefact is None else f"{artefact.manifest.model}/{engine.name}"
    wrong = _complaint(engine, artefact)
    if wrong is not None:
        return Finding("engine", subject, Verdict.FAILED, wrong, f"build it again: {BUILD} --help")
    whose = "" if artefact is None else ", and of the model's graph and checkpoint"
    return Finding("engine", subject, Verdict.OK, f"it is the file of its record{whose}")


def _complaint(engine: Path, artefact: Artefact | None) -> str | None:
    """Return what is wrong with an engine by the record beside it, if anything is."""
    path = engine.with_name(engine.name + ".json")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected, graph = record["engine"]["sha256"], record["key"]["graph"]["sha256"]
        checkpoint = record.get("source", {}).get("checkpoint_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its record {path.name} is missing or damaged"
    if sha256_of(engine) != expected:
        return "it is not the file that its record describes"
    if artefact is None:
        return None
    manifest = artefact.manifest
    if graph not in (file.sha256 for file in manifest.files.values()):
        return "it was not built from a graph of this version"
    if checkpoint is not None and checkpoint != manifest.source.get("checkpoint_sha256"):
        return "it was built from another checkpoint"
    return None
