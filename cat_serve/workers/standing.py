"""How the engine process stands, as its workers know it: phase, models, and what is promised of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cat_serve.classes import Classes
from cat_serve.manifest import Artefact, Determinism, manifest_of
from cat_serve.phase import Phase
from cat_serve.service import Service
from cat_serve.wanted import ServedModel


@dataclass(frozen=True)
class RemoteEngine:
    """See `EngineFacts`."""

    name: str
    precision: str


@dataclass(frozen=True)
class ModelStanding:
    """One model: its engine is None before it is loaded."""

    served: ServedModel
    engine: RemoteEngine | None
    determinism: Determinism
    studio_determinism: Determinism
    stages: int


@dataclass(frozen=True)
class Standing:
    """All of it; without models before anything is known."""

    phase: Phase = Phase.STARTING
    reason: str = "the engine process is being started"
    default: str = ""
    models: Mapping[str, ModelStanding] = field(default_factory=dict)

    @property
    def served(self) -> dict[str, ServedModel]:
        return {name: model.served for name, model in self.models.items()}


def summary(service: Service) -> tuple[Any, ...]:
    """Return what `written` depends on; quick enough to be compared many times a second."""
    models = tuple(
        (name, model.artefact.version, *_promised(service, name).items(), _engine(service, name))
        for name, model in service.models.items()
    )
    return service.phase, service.reason, service.default, models


def written(service: Service) -> dict[str, Any]:
    """Return the standing of a service as JSON values."""
    return {
        "phase": service.phase,
        "reason": service.reason,
        "default": service.default,
        "models": [
            {
                "folder": str(model.artefact.folder),
                "version": model.artefact.version,
                "manifest": asdict(model.artefact.manifest),
                "engine": _engine(service, name),
                **_promised(service, name),
            }
            for name, model in service.models.items()
        ],
    }


def read(values: Mapping[str, Any], before: Standing) -> Standing:
    """Return the standing; models that `before` has in the same version are the same objects."""
    models = [_read_model(each, before) for each in values["models"]]
    return Standing(
        Phase(values["phase"]),
        values["reason"],
        values["default"],
        {model.served.name: model for model in models},
    )


def _read_model(values: Mapping[str, Any], before: Standing) -> ModelStanding:
    name = values["manifest"]["model"]
    known = before.models.get(name)
    if known is not None and known.served.artefact.version == values["version"]:
        served = known.served
    else:
        manifest = manifest_of(values["manifest"])
        artefact = Artefact(Path(values["folder"]), manifest, values["version"])
        served = ServedModel(artefact, Classes(name, manifest.class_names))
    return ModelStanding(
        served,
        None if values["engine"] is None else RemoteEngine(*values["engine"]),
        values["determinism"],
        values["studio_determinism"],
        values["stages"],
    )


def _engine(service: Service, name: str) -> tuple[str, str] | None:
    engine = service.engine(name)
    return None if engine is None else (engine.name, engine.precision)


def _promised(service: Service, name: str) -> dict[str, Any]:
    return {
        "determinism": service.determinism(name),
        "studio_determinism": service.determinism(name, studio=True),
        "stages": service.stages(name),
    }
