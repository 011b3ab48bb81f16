"""Engines that turn (z, class_id, truncation_psi) into images, behind one protocol.

An engine is chosen by name, and its module is imported only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cat_serve.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from cat_serve.backends.base import Backend, Engine, EngineOptions
    from cat_serve.manifest import Artefact

# Every module here has open_backend(artefact, options) -> Backend.
BACKENDS = {
    "onnxruntime": "cat_serve.backends.onnxruntime",
    "torch": "cat_serve.backends.torch",
    "fake": "cat_serve.backends.fake",
}

# Every module here has the coroutine open_engine(artefact, options) -> Engine: what is computed elsewhere.
REMOTE = {"triton": "cat_serve.backends.triton"}


async def open_engine(name: str, artefact: Artefact, options: EngineOptions) -> Engine:
    """Open `artefact` for the service, in this process or elsewhere, and prove it.

    Raises: see `open_backend`; and BadOutput if it does not make its golden images.
    """
    from cat_serve.backends.local import LocalEngine

    if name in REMOTE:
        try:
            module = import_module(REMOTE[name])
        except ImportError as error:
            raise MissingDependency(
                f"The {name} backend needs {error.name}.", hint=f"pip install 'cat-serve[{name}]'"
            ) from error
        engine: Engine = await module.open_engine(artefact, options)
        return engine
    return await LocalEngine.open(
        lambda opened: open_backend(name, opened, options), artefact, options.concurrency
    )


def open_backend(name: str, artefact: Artefact, options: EngineOptions) -> Backend:
    """Load `artefact` on the engine called `name`, in this process.

    Raises:
        InvalidInput: no such engine.
        MissingDependency: this machine lacks the engine's package or device.
        ArtefactError: the artefact does not fit.
    """
    if name not in BACKENDS:
        raise InvalidInput(f"No backend {name!r}.", hint=f"backends: {', '.join(BACKENDS)}")
    backend: Backend = import_module(BACKENDS[name]).open_backend(artefact, options)
    return backend
