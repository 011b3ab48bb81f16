"""What the web layer asks of a service, whether that is in the same process or in another one.

`cat_serve.service.Service` is the one, `cat_serve.workers.remote.RemoteService` the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import UnknownModel
from cat_serve.manifest import Determinism
from cat_serve.wanted import ServedModel, Wanted

if TYPE_CHECKING:
    import numpy as np

    from cat_serve.batching import Limits
    from cat_serve.phase import Phase
    from cat_serve.reloading import ModelReload


@dataclass(frozen=True)
class GeneratedImages:
    """uint8 [n, H, W, 3], what is promised of its bytes, and where the time went; see `Made`.

    Attributes:
        stage_pixels: uint8 [n, K, H, W, 3], every stage's images, of a StudioRequest that wants them.
    """

    pixels: np.ndarray
    determinism: Determinism
    queue_ms: float
    generate_ms: float
    stage_pixels: np.ndarray | None = None


class EngineFacts(Protocol):
    """What is told of a model's engine."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...


class Counts(Protocol):
    """What is counted of HTTP; see `Metrics`."""

    def answered(
        self, route: str, status: int, seconds: float, code: str | None, key: str | None
    ) -> None: ...

    def encoded(self, model: str, encode_ms: float) -> None: ...

    def gone(self, route: str) -> None: ...


class ImageService(Protocol):
    """See `Service`, which says of each member what it does."""

    @property
    def default(self) -> str: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def metrics(self) -> Counts: ...

    @property
    def models(self) -> Mapping[str, ServedModel]: ...

    @property
    def phase(self) -> Phase: ...

    @property
    def reason(self) -> str: ...

    def model(self, name: str | None) -> ServedModel: ...

    def engine(self, name: str) -> EngineFacts | None: ...

    def determinism(self, name: str, studio: bool = False) -> Determinism: ...

    def stages(self, name: str) -> int: ...

    async def generate(self, request: Wanted, deadline: Deadline = NEVER) -> GeneratedImages: ...

    @property
    def revision(self) -> int: ...

    async def scrape(self, accept: str) -> tuple[bytes, str]: ...

    async def reload(self) -> Sequence[ModelReload]: ...

    async def start(self) -> None: ...

    def stop_accepting(self) -> None: ...

    async def close(self) -> None: ...


def served(models: Mapping[str, ServedModel], default: str, name: str | None) -> ServedModel:
    """Return the model called `name`, or the default one.

    Raises:
        UnknownModel: there is no such model.
    """
    if name is None:
        return models[default]
    if name not in models:
        names = sorted(models)
        raise UnknownModel(
            f"There is no model {name!r} here.",
            hint=f"models: {', '.join(names)}",
            got=name,
            accepted=names,
        )
    return models[name]
