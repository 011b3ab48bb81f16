"""What every engine must offer; `tests/serving/test_backends.py` holds each of them to it."""

from __future__ import annotations

from typing import Protocol

from cat_serve.contract import Batch, Output
from cat_serve.manifest import Artefact


class Backend(Protocol):
    """One loaded model on one engine.

    Attributes:
        name: the name it is chosen by (`onnxruntime`, `torch`, ...).
        artefact: the model it serves.
    """

    name: str
    artefact: Artefact

    def run(self, batch: Batch) -> Output:
        """Make images in one forward pass; blocking and safe to call from several threads.

        Raises:
            BackendError: the engine failed, or answered with something else than the contract says.
        """

    def close(self) -> None:
        """Free the engine; `run` must not be called again."""
