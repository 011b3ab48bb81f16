"""The client that blocks."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from cat_serve.animation import AnimationFormat
from cat_serve.client.asynchronous import AsyncClient
from cat_serve.client.attempts import Retries
from cat_serve.client.calls import ClassesOfKeys, ClassLike, Latent, Seeds, SeedsOfKeys
from cat_serve.client.connection import CLIENTS_OWN, DEADLINE_S, DEFAULT_URL, ClientsOwn
from cat_serve.client.results import Animation, Images, ModelCard, ModelClasses
from cat_serve.client.waiting import wait_for
from cat_serve.images import Format
from cat_serve.interpolation import Curve


class Client:
    """Asks one server; keeps connections open, and may be used by several threads.

    It waits for an `AsyncClient`, on an event loop in a thread that all clients share.

    Args:
        base_url: the server's address; a path in it is kept.
        api_key: sent as `Authorization: Bearer`.
        deadline_s: seconds that a call has in all, its retries included; the server is told, and drops what is late.
            None: as long as it takes.
        retries: see `Retries`.
        transport: an httpx transport to use instead of the network, such as `httpx.ASGITransport(app)`.

    Raises:
        InvalidInput: `base_url` is no address.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        deadline_s: float | None = DEADLINE_S,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            base_url, api_key=api_key, deadline_s=deadline_s, retries=retries, transport=transport
        )

    def generate(
        self,
        class_: ClassLike,
        *,
        seed: int | None = None,
        n: int = 1,
        seeds: Seeds | None = None,
        z: Latent | None = None,
        truncation_psi: float = 1.0,
        stage: int | None = None,
        format: Format = "png",
        model: str | None = None,
        deadline_s: float | ClientsOwn | None = CLIENTS_OWN,
    ) -> Images:
        """Make `n` images of a class; image i has seed + i.

        Args:
            class_: an index, a name, or a mixture {index: weight}, whose weights sum to 1.
            seed: 0 .. 2^32 - 1; drawn here if it is None, so that a retry asks for the same images.
            seeds: instead of `seed` and `n`: `"0-9,42"`, or the seeds themselves.
            z: instead of a seed: the latent itself, of the model's z_shape.
            truncation_psi: 0 .. 1; 1 is off.
            stage: 1 .. the model's number of stages; the last one if None.
            deadline_s: of this call; see the class.

        Raises:
            UnknownClass: `details["suggestions"]` has names that resemble it.
            InvalidInput: another parameter does not fit; `code` and `details` say which.
            Overloaded: also after the last attempt; `details["retry_after_s"]` says when to come back.
            DeadlineExceeded: there was no time left; `details["stage"]` says where it went.
            BackendUnavailable: no server, or none that can compute, also after the last attempt.
            BackendError: the server failed.
        """
        return wait_for(
            self._client.generate(
                class_, seed=seed, n=n, seeds=seeds, z=z, truncation_psi=truncation_psi,
                stage=stage, format=format, model=model, deadline_s=deadline_s,
            )
        )  # fmt: skip

    def interpolate(
        self,
        class_: ClassesOfKeys,
        *,
        seed: SeedsOfKeys | None = None,
        frames: int | None = None,
        fps: int | None = None,
        interpolation: Curve = "slerp",
        loop: bool = False,
        truncation_psi: float = 1.0,
        format: AnimationFormat = "webp",
        model: str | None = None,
        deadline_s: float | ClientsOwn | None = CLIENTS_OWN,
    ) -> Animation:
        """Animate the way between key frames: seeds, classes, or both.

        Args:
            class_: of all key frames, or a list with one for each.
            seed: of all key frames, or a list with one for each; one is drawn here if it is None.
            frames, fps: of the animation; the server's usual ones if None.
            interpolation: of the latents, `slerp` or `lerp`.
            loop: go back to the first key frame, and play for ever.

        Raises: see `generate`.
        """
        return wait_for(
            self._client.interpolate(
                class_, seed=seed, frames=frames, fps=fps, interpolation=interpolation, loop=loop,
                truncation_psi=truncation_psi, format=format, model=model, deadline_s=deadline_s,
            )
        )  # fmt: skip

    def classes(self, model: str | None = None) -> tuple[ModelClasses, ...]:
        """List the classes of every model, or of one.

        Raises:
            UnknownModel: there is no such model.
        """
        return wait_for(self._client.classes(model))

    def models(self) -> tuple[ModelCard, ...]:
        """Return the card of every model."""
        return wait_for(self._client.models())

    def ready(self) -> bool:
        """Say whether images can be had now; a server that cannot be reached is not ready."""
        return wait_for(self._client.ready())

    def wait_until_ready(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until images can be had.

        Raises:
            BackendUnavailable, DeadlineExceeded: they could not in that time.
        """
        wait_for(self._client.wait_until_ready(deadline_s))

    def close(self) -> None:
        """Close the connections; calls after that fail."""
        wait_for(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
