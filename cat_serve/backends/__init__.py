"""Engines that turn (z, class_id, truncation_psi) into images, behind one protocol.

An engine is chosen by name, and its module is imported only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from cat_serve.backends.base import Backend, EngineOptions
    from cat_serve.manifest import Artefact

# Every module here has open_backend(artefact, options) -> Backend.
BACKENDS = {
    "onnxruntime": "cat_serve.backends.onnxruntime",
    "torch": "cat_serve.backends.torch",
    "fake": "cat_serve.backends.fake",
}


def open_backend(name: str, artefact: Artefact, options: EngineOptions) -> Backend:
    """Load `artefact` on the engine called `name`.

    Raises:
        InvalidInput: no such engine.
        MissingDependency: this machine lacks the engine's package or device.
        ArtefactError: the artefact does not fit.
    """
    if name not in BACKENDS:
        raise InvalidInput(f"No backend {name!r}.", hint=f"backends: {', '.join(BACKENDS)}")
    backend: Backend = import_module(BACKENDS[name]).open_backend(artefact, options)
    return backend
