"""The client that awaits."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

import anyio
import httpx

from cat_serve.animation import AnimationFormat
from cat_serve.client.attempts import Attempts, Retries
from cat_serve.client.calls import (
    Call,
    ClassesOfKeys,
    ClassLike,
    Latent,
    Seeds,
    SeedsOfKeys,
    classes_call,
    generate_call,
    interpolate_call,
    models_call,
    ready_call,
    understood,
)
from cat_serve.client.connection import (
    CLIENTS_OWN,
    DEADLINE_S,
    DEFAULT_URL,
    ClientsOwn,
    options,
    whole,
)
from cat_serve.client.results import Animation, Images, ModelCard, ModelClasses
from cat_serve.errors import BackendUnavailable
from cat_serve.images import Format
from cat_serve.interpolation import Curve

T = TypeVar("T")

ONCE = Retries(attempts=1)


class AsyncClient:
    """See `Client`: the same calls, awaited; `async with` closes it. Many may be under way at once.

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
        self._http = httpx.AsyncClient(transport=transport, **options(base_url, api_key))
        self._deadline_s = deadline_s
        self._retries = retries or Retries()

    async def generate(
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
        """See `Client.generate`."""
        call = generate_call(
            class_, seed=seed, n=n, seeds=seeds, z=z, truncation_psi=truncation_psi,
            stage=stage, format=format, model=model,
        )  # fmt: skip
        return await self._make(call, deadline_s)

    async def interpolate(
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
        """See `Client.interpolate`."""
        call = interpolate_call(
            class_, seed=seed, frames=frames, fps=fps, interpolation=interpolation, loop=loop,
            truncation_psi=truncation_psi, format=format, model=model,
        )  # fmt: skip
        return await self._make(call, deadline_s)

    async def classes(self, model: str | None = None) -> tuple[ModelClasses, ...]:
        """List the classes of every model, or of one.

        Raises:
            UnknownModel: there is no such model.
        """
        return await self._make(classes_call(model))

    async def models(self) -> tuple[ModelCard, ...]:
        """Return the card of every model."""
        return await self._make(models_call())

    async def ready(self) -> bool:
        """Say whether images can be had now; a server that cannot be reached is not ready."""
        try:
            return await self._make(ready_call(), retries=ONCE)
        except BackendUnavailable:
            return False

    async def wait_until_ready(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until images can be had.

        Raises:
            BackendUnavailable, DeadlineExceeded: they could not in that time.
        """
        patient = Retries(attempts=int(1e9), first_s=0.1, longest_s=0.5)
        await self._make(ready_call(), deadline_s, retries=patient)

    async def close(self) -> None:
        """Close the connections; calls after that fail."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _make(
        self,
        call: Call[T],
        deadline_s: float | ClientsOwn | None = CLIENTS_OWN,
        retries: Retries | None = None,
    ) -> T:
        given_s = self._deadline_s if isinstance(deadline_s, ClientsOwn) else deadline_s
        attempts = Attempts(retries or self._retries, given_s)
        while True:
            try:
                answer = await self._attempt(call, attempts)
                pause_s = attempts.after(answer)
            except httpx.RequestError as failure:
                pause_s = attempts.after_failure(failure)
            if pause_s is None:
                return understood(call, answer, attempts.made)
            await anyio.sleep(pause_s)

    async def _attempt(self, call: Call[T], attempts: Attempts) -> httpx.Response:
        headers, timeout = attempts.begin()
        request = self._http.build_request(
            call.method, call.path, params=call.params, json=call.json, headers=headers, timeout=timeout
        )  # fmt: skip
        try:
            with anyio.fail_after(attempts.left_s):
                answer = await self._http.send(request, stream=True)
                try:
                    pieces = [piece async for piece in answer.aiter_bytes()]
                finally:
                    with anyio.CancelScope(shield=True):
                        await answer.aclose()
        except TimeoutError as late:
            raise attempts.too_late() from late
        return whole(answer, pieces)
