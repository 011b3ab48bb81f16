"""What really computes: a session is opened on every provider, and has to make the golden images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, get_args

from cat_serve.backends import open_backend
from cat_serve.backends.base import EngineOptions, Provider
from cat_serve.contract import Precision
from cat_serve.doctor.finding import Finding, Verdict
from cat_serve.embedded import embedded
from cat_serve.errors import CatServeError, MissingDependency
from cat_serve.golden import check_golden
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings

if TYPE_CHECKING:
    from cat_serve.backends.triton_connection import Connection

BACKEND = "onnxruntime"


def look(artefact: Artefact, settings: Settings) -> Iterator[Finding]:
    """Open a model on every provider in every precision, on torch if that is asked for, and at every Triton server."""
    for provider in get_args(Provider):
        asked = [settings.precision] * (
            (settings.backend, settings.provider) == (BACKEND, provider)
        )
        for precision in dict.fromkeys((*artefact.manifest.precisions, *asked)):
            options = EngineOptions(provider, settings.threads, precision=precision)
            wanted = (settings.backend, settings.provider, settings.precision) == (BACKEND, provider, precision)  # fmt: skip
            yield tried(BACKEND, artefact, options, wanted)
    if settings.backend == "torch":
        options = EngineOptions(threads=settings.threads, checkpoints=settings.checkpoints)
        yield tried("torch", artefact, options, wanted=True)
    if settings.backend != "triton":
        yield _studio(artefact, settings)
    if settings.triton_url:
        yield from asyncio.run(_servers(artefact, settings))


def tried(name: str, artefact: Artefact, options: EngineOptions, wanted: bool) -> Finding:
    """Open a model on one engine and let it make its golden images.

    Args:
        wanted: whether the settings ask for this very engine; one that nobody asked for may be lacking.
    """
    where = f"{name} {options.provider} {options.precision}" if name == BACKEND else name
    subject = f"{artefact.manifest.model} on {where}"
    try:
        seconds = _prove(name, artefact, options)
    except MissingDependency as error:
        verdict = Verdict.LACKS if wanted else Verdict.NONE
        return Finding("engine", subject, verdict, error.message, error.hint if wanted else None)
    except CatServeError as error:
        return Finding("engine", subject, Verdict.FAILED, error.message, error.hint)
    return Finding("engine", subject, Verdict.OK, f"made its golden images in {1e3 * seconds:.0f} ms")  # fmt: skip


def _prove(name: str, artefact: Artefact, options: EngineOptions) -> float:
    """Return the seconds that it took; raises what the engine raises."""
    with closing(open_backend(name, artefact, options)) as backend:
        started_s = time.perf_counter()
        check_golden(backend)
        return time.perf_counter() - started_s


def _studio(artefact: Artefact, settings: Settings) -> Finding:
    """Open the graph of mixtures and stages as the settings say: a server does it at the first request that needs it."""
    subject = f"{artefact.manifest.model} studio"
    if not artefact.manifest.stages:
        return Finding("engine", subject, Verdict.NONE, "the model was exported without one")
    try:
        with embedded(artefact, settings, studio=True) as opened:
            engine = f"{opened.backend.name} in {opened.backend.precision}"
    except MissingDependency as error:
        return Finding(
            "engine", subject, Verdict.NONE, error.message
        )  # advised where it is lacking
    except CatServeError as error:
        lacking = error.code == "no_studio"
        verdict, advice = (Verdict.NONE, None) if lacking else (Verdict.FAILED, error.hint)
        return Finding("engine", subject, verdict, error.message, advice)
    return Finding("engine", subject, Verdict.OK, f"made its golden images on {engine}")


async def _servers(artefact: Artefact, settings: Settings) -> list[Finding]:
    try:
        from cat_serve.backends import triton_connection
    except ImportError:
        return []  # said with the packages
    asked = (_server(url, artefact, settings, triton_connection.Connection) for url in settings.triton_url)  # fmt: skip
    return list(await asyncio.gather(*asked))


async def _server(
    url: str, artefact: Artefact, settings: Settings, connect: type[Connection]
) -> Finding:
    """Let one Triton server prove itself as it has to in front of the service."""
    subject = f"{artefact.manifest.model} at {url}"
    precision: Precision = settings.precision
    max_batch = min(settings.max_batch, artefact.manifest.max_batch)
    connection = connect(url, artefact, precision, max_batch)
    try:
        async with asyncio.timeout(settings.triton_attempt_ms / 1e3):
            await connection.require_alive(settings.triton_stall_ms / 1e3)
            proof = await connection.prove()
    except TimeoutError:
        return Finding("triton", subject, Verdict.FAILED, "it takes too long to make its golden images",
                       "set --triton-attempt-ms higher, or look at the server")  # fmt: skip
    except CatServeError as error:
        advice = error.hint or "start it, and look at its log: docs/triton.md"
        return Finding("triton", subject, Verdict.FAILED, error.message, advice)
    finally:
        await connection.close()
    return Finding("triton", subject, Verdict.OK, f"made its golden images; {proof.determinism}")
