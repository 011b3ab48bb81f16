"""Which models the friendly model may be asked for, and all it must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cat_serve.classes import Classes
from cat_serve.errors import ArtefactError, UnknownModel
from cat_serve.files import sha256_of
from cat_serve.manifest import Artefact, read_manifest
from cat_serve.repository import choose_default
from cat_serve.triton_models.tensors import FRIENDLY_MODEL
from cat_serve.wanted import ServedModel


@dataclass(frozen=True)
class Catalogue:
    """The models that may be asked for.

    Attributes:
        versions: the version folder of each, which is the one its engine is asked for.
        default: the model for requests that name none.
    """

    models: Mapping[str, ServedModel]
    versions: Mapping[str, int]
    default: str

    def find(self, name: str) -> ServedModel:
        """Return the model called `name`.

        Raises:
            UnknownModel: there is none.
        """
        if name not in self.models:
            names = sorted(self.models)
            raise UnknownModel(
                f"There is no model {name!r} here.",
                hint=f"models: {', '.join(names)}",
                got=name,
                accepted=names,
            )
        return self.models[name]


def read_catalogue(folder: Path, versions: Mapping[str, int], default: str) -> Catalogue:
    """Read the copies of the models' manifests in the friendly model's own folder.

    The models themselves may be out of reach: from an object store, Triton fetches each model to a place of its own.

    Raises:
        ArtefactError: a copy is missing or damaged.
        UnknownModel: `default` is none of the models.
    """
    models = {name: _served(manifest_copy(folder, name)) for name in versions}
    return Catalogue(models, versions, choose_default(versions, default))


def manifest_copy(folder: Path, model: str) -> Path:
    """Return where the friendly model keeps what it must know of a model."""
    return folder / f"{model}.json"


def _served(path: Path) -> ServedModel:
    if not path.is_file():
        raise ArtefactError(
            f"The model {FRIENDLY_MODEL} has no {path.name}.",
            hint="write it: python -m export.triton --help",
        )
    manifest = read_manifest(path)
    artefact = Artefact(path.parent, manifest, sha256_of(path)[:12])
    return ServedModel(artefact, Classes(manifest.model, manifest.class_names))
