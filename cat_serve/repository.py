"""Find the model repository and read the newest version of every model in it.

<repository>/<model>/<version number>/{model.onnx, manifest.json, ...}
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cat_serve.errors import ArtefactError, InvalidInput, UnknownModel
from cat_serve.manifest import MANIFEST_NAME, Artefact, load_artefact, public_version

PREFERRED_MODEL = "fashion-32"
RESERVED_NAMES = frozenset({"cat"})  # the Triton ensemble that other tools write beside the models

_PACKAGE = Path(__file__).parent
_SET_IT = "set CAT_SERVE_MODEL_REPOSITORY (or --model-repository) to a folder <model>/<version>/"


def find_repository(wanted: Path | None = None) -> Path:
    """Return the repository to serve: `wanted`, else the one in the wheel, else the checkout's.

    Raises:
        ArtefactError: `wanted` is not a folder, or none was found.
    """
    if wanted is not None:
        if not wanted.is_dir():
            raise ArtefactError(f"The model repository {wanted} is not a folder.", hint=_SET_IT)
        return wanted
    for candidate in (_PACKAGE / "_model_repository", _PACKAGE.parent / "model_repository"):
        if candidate.is_dir():
            return candidate
    raise ArtefactError("This installation has no model repository.", hint=_SET_IT)


def newest_versions(repository: Path) -> dict[str, Path]:
    """Return the folder of the highest version number of every model, by model name."""
    newest: dict[str, Path] = {}
    for model in sorted(repository.iterdir()):
        if not model.is_dir() or model.name.startswith((".", "_")) or model.name in RESERVED_NAMES:
            continue
        if versions := _versions(model):
            newest[model.name] = versions[0]
    return newest


def find_version(repository: Path, model: str, version: str) -> Artefact | None:
    """Return the artefact with this public version, be it the newest or not; None if it is not there.

    Args:
        model: any text; only folders of the repository itself are looked into.

    Raises:
        ArtefactError: it is there, and damaged.
    """
    folders = [folder for folder in repository.iterdir() if folder.is_dir()]
    for folder in (each for found in folders if found.name == model for each in _versions(found)):
        manifest = folder / MANIFEST_NAME
        if manifest.is_file() and public_version(manifest) == version:
            return load_artefact(folder)
    return None


def load_models(repository: Path) -> dict[str, Artefact]:
    """Read and check the newest version of every model, by model name.

    Raises:
        ArtefactError: there is no model, or one is damaged or lies under another model's name.
    """
    newest = newest_versions(repository)
    if not newest:
        raise ArtefactError(f"The model repository {repository} holds no model.", hint=_SET_IT)
    return {name: load_model(name, folder) for name, folder in newest.items()}


def load_model(name: str, folder: Path) -> Artefact:
    """Read and check a version folder of the model called `name`.

    Raises:
        ArtefactError: it is damaged, or another model.
    """
    artefact = load_artefact(folder)
    if artefact.manifest.model != name:
        raise ArtefactError(
            f"The folder {name!r} holds the model {artefact.manifest.model!r}.",
            hint="rename the folder to the name in the manifest",
        )
    return artefact


def choose_default(models: Collection[str], wanted: str | None = None) -> str:
    """Return the model that serves requests which name none: `wanted`, the only one, or fashion-32.

    Raises:
        UnknownModel: `wanted` is not there.
        InvalidInput: there are several, and nothing says which.
    """
    names = ", ".join(sorted(models))
    if wanted is not None:
        if wanted not in models:
            raise UnknownModel(
                f"There is no model {wanted!r}.",
                hint=f"models here: {names}",
                got=wanted,
                accepted=sorted(models),
            )
        return wanted
    if len(models) == 1:
        return next(iter(models))
    if PREFERRED_MODEL in models:
        return PREFERRED_MODEL
    raise InvalidInput(
        "The repository has several models, and none is the default.",
        hint=f"set CAT_SERVE_MODEL (or --model) to one of: {names}",
    )


def _versions(model: Path) -> list[Path]:
    """Return a model's version folders, the newest first."""
    versions = [entry for entry in model.iterdir() if _is_version(entry)]
    return sorted(versions, key=lambda folder: int(folder.name), reverse=True)


def _is_version(folder: Path) -> bool:
    return folder.is_dir() and folder.name.isascii() and folder.name.isdigit()
