"""The files that make a model repository one of Triton's, and what is still to do until they are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cat_serve.errors import ArtefactError, InvalidInput, UnknownModel
from cat_serve.files import write_text
from cat_serve.manifest import FORMAT, MANIFEST_NAME, Artefact, load_artefact
from cat_serve.repository import choose_default, newest_versions
from cat_serve.triton_models.catalogue import manifest_copy
from cat_serve.triton_models.tensors import FRIENDLY_MODEL
from export.triton.config import PYTHON_FILE, engine_config, friendly_config, to_text
from export.triton.options import EngineOptions, FriendlyOptions, Versions
from export.triton.plans import require_plans

MODEL_PY = '''"""What Triton's python backend runs here; written by `python -m export.triton`."""

from cat_serve.triton_models.{module} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
CONFIG = "config.pbtxt"
MARKS = ("python -m export.triton", FORMAT)  # what we write says so

Files = dict[Path, str | None]  # None: must not be there
Load = Callable[[Path], Artefact]


@dataclass(frozen=True)
class Layout:
    """What a repository is made into.

    Attributes:
        models: the models whose configuration is written; None: all.
        friendly: whether `cat` is there; without it, Triton needs no python backend.
    """

    engine: EngineOptions
    models: tuple[str, ...] | None = None
    friendly: bool = True
    friendly_instances: int = 2
    default_model: str | None = None


def planned_files(repository: Path, layout: Layout) -> Files:
    """Return the files that `layout` asks for, by path, and those that it rules out.

    Raises:
        ArtefactError: there is no model, or a version that is served is damaged or has no such graph.
        InvalidInput: an option does not fit a model.
    """
    names = list(newest_versions(repository))
    if not names:
        raise ArtefactError(
            f"The model repository {repository} holds no model.",
            hint="python -m export.onnx --help",
        )
    chosen = names if layout.models is None else list(layout.models)
    if unknown := set(chosen) - set(names):
        raise UnknownModel(
            f"There is no model {', '.join(sorted(unknown))}.",
            hint=f"models here: {', '.join(names)}",
        )
    load = cache(load_artefact)  # it reads every byte
    files: Files = {}
    for name in chosen:
        files |= _engine_files(repository / name, layout.engine, load)
    return files | _friendly_files(repository, layout, load)


def _engine_files(folder: Path, options: EngineOptions, load: Load) -> Files:
    artefacts = served_artefacts(folder, options.versions, load)
    for artefact in artefacts.values():
        artefact.graph(options.precision)
        if options.engine == "tensorrt_plan":
            require_plans(artefact, options)
    files: Files = {folder / CONFIG: to_text(engine_config(artefacts, options))}
    ours = MODEL_PY.format(module="engine")
    for number in artefacts:
        path = folder / str(number) / PYTHON_FILE
        files[path] = ours if options.engine == "python" else None
    return files


def _friendly_files(repository: Path, layout: Layout, load: Load) -> Files:
    """Return the files of `cat`, among them a copy of the manifest of every model that it asks."""
    folder = repository / FRIENDLY_MODEL
    config, model = folder / CONFIG, folder / "1" / PYTHON_FILE
    files: Files = dict.fromkeys([config, model, *(folder / "1").glob("*.json")], None)
    if not layout.friendly:
        return files
    newest = {
        name: max(served_artefacts(repository / name, layout.engine.versions, load).items())
        for name in newest_versions(repository)
    }
    options = FriendlyOptions(
        default_model=_default_model(list(newest), layout.default_model),
        versions={name: number for name, (number, _) in newest.items()},
        max_batch=max(artefact.manifest.max_batch for _, artefact in newest.values()),
        instances=layout.friendly_instances,
        queue=layout.engine.batching.queue,
    )
    copies: Files = {
        manifest_copy(folder / "1", name): (artefact.folder / MANIFEST_NAME).read_text("utf-8")
        for name, (_, artefact) in newest.items()
    }
    texts = {config: to_text(friendly_config(options)), model: MODEL_PY.format(module="friendly")}
    return files | copies | texts


def _default_model(names: list[str], wanted: str | None) -> str:
    try:
        return choose_default(names, wanted)
    except InvalidInput as error:
        error.hint = f"give --default-model, one of: {', '.join(names)}"
        raise


def served_artefacts(folder: Path, versions: Versions, load: Load) -> dict[int, Artefact]:
    """Return the artefacts of the version folders that are served, by number.

    Raises:
        ArtefactError: one of them is damaged, or they are not of one shape.
        InvalidInput: a version that is wanted is not there.
    """
    there = [
        int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()
    ]
    artefacts = {number: load(folder / str(number)) for number in versions.choose(there)}
    shapes = {(a.manifest.z_shape, a.manifest.image_size) for a in artefacts.values()}
    if len(shapes) > 1:
        raise ArtefactError(
            f"The versions {', '.join(map(str, artefacts))} of {folder.name} have tensors of different shapes.",
            hint="one configuration holds for all versions: serve one, or give the model another name",
        )
    return artefacts


def differences(files: Files) -> list[Path]:
    """Return which files are not as planned."""
    return [
        path for path, text in files.items() if _current(path) != text and _concerns(path, text)
    ]


def _current(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _concerns(path: Path, text: str | None) -> bool:
    """A file that should not be there is ours to remove only if we wrote it."""
    there = _current(path) or ""
    return text is not None or any(mark in there for mark in MARKS)


def write(files: Files) -> list[Path]:
    """Write what is not as planned, each file in one step; remove what is ruled out. Return what was changed."""

    changed = differences(files)
    for path in changed:
        if (text := files[path]) is not None:
            write_text(path, text)
            continue
        path.unlink()
        for folder in (path.parent, path.parent.parent):
            if not any(folder.iterdir()):
                folder.rmdir()
    return changed
