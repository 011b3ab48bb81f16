"""From settings to a service: which engine is opened, and how much is taken on. No HTTP in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cat_serve import backends
from cat_serve.backends.base import EngineOptions, TritonOptions
from cat_serve.backends.local import BackendFactory, LocalEngine
from cat_serve.batching import Limits
from cat_serve.loaded import EngineFactory
from cat_serve.manifest import Artefact
from cat_serve.repository import (
    choose_default,
    find_repository,
    load_models,
    newest_versions,
)
from cat_serve.service import Service
from cat_serve.settings import Settings


def service_of(
    settings: Settings,
    artefacts: Mapping[str, Artefact] | None = None,
    open_engine: BackendFactory | None = None,
) -> Service:
    """Return the service that the settings describe; its engines are opened when it starts.

    Args:
        artefacts: the models, if they were read before; by default those of the repository.
        open_engine: opens a model inside this process; by default the engine that the settings name is opened.

    Raises:
        ArtefactError: a model is damaged, or there is none.
        InvalidInput: the default model is not there.
    """
    if artefacts is None:
        artefacts = load_models(find_repository(settings.model_repository))

    def newest() -> dict[str, Path]:
        return newest_versions(find_repository(settings.model_repository))

    return Service(
        artefacts,
        choose_default(artefacts, settings.model),
        engine_opener(settings, open_engine),
        settings.triton_concurrency if settings.backend == "triton" else settings.concurrency,
        limits_of(settings),
        newest=newest,
    )


def limits_of(settings: Settings) -> Limits:
    """Return how much is taken on."""
    return Limits(
        settings.max_images_per_request,
        settings.max_queued_images,
        settings.max_batch,
        settings.batch_delay_ms,
        settings.deadline_ms,
        settings.max_frames_per_request,
    )


def engine_opener(settings: Settings, open_here: BackendFactory | None = None) -> EngineFactory:
    """Return what opens a model: `open_here`, or else the engine that the settings name."""
    if open_here is not None:
        return lambda artefact: LocalEngine.open(open_here, artefact, settings.concurrency)
    options = EngineOptions(
        provider=settings.provider,
        threads=settings.threads,
        checkpoints=settings.checkpoints,
        precision=settings.precision,
        concurrency=settings.concurrency,
        triton=TritonOptions(
            urls=settings.triton_url,
            balance=settings.triton_balance,
            attempt_ms=settings.triton_attempt_ms,
            stall_ms=settings.triton_stall_ms,
            max_batch=settings.max_batch,
        ),
    )
    return lambda artefact: backends.open_engine(settings.backend, artefact, options)
