"""The client that blocks."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TypeVar

import httpx

from cat_serve.client.attempts import Attempts, Retries
from cat_serve.client.calls import (
    Call,
    ClassLike,
    Latent,
    Seeds,
    classes_call,
    generate_call,
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
from cat_serve.client.results import Images, ModelCard, ModelClasses
from cat_serve.errors import BackendUnavailable
from cat_serve.images import Format

T = TypeVar("T")

ONCE = Retries(attempts=1)


class Client:
    """Asks one server; keeps connections open, and may be used by several threads.

    Args:
        base_url: the server's address; a path in it is kept.
        api_key: sent as `Authorization: Bearer`.
        deadline_s: seconds that a call has in all, its retries included; the server is told, and drops what is late.
            None: as long as it takes.
        retries: see `Retries`.
        transport: an httpx transport to use instead of the network.

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **options(base_url, api_key))
        self._deadline_s = deadline_s
        self._retries = retries or Retries()

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
        call = generate_call(
            class_, seed=seed, n=n, seeds=seeds, z=z, truncation_psi=truncation_psi,
            stage=stage, format=format, model=model,
        )  # fmt: skip
        return self._make(call, deadline_s)

    def classes(self, model: str | None = None) -> tuple[ModelClasses, ...]:
        """List the classes of every model, or of one.

        Raises:
            UnknownModel: there is no such model.
        """
        return self._make(classes_call(model))

    def models(self) -> tuple[ModelCard, ...]:
        """Return the card of every model."""
        return self._make(models_call())

    def ready(self) -> bool:
        """Say whether images can be had now; a server that cannot be reached is not ready."""
        try:
            return self._make(ready_call(), retries=ONCE)
        except BackendUnavailable:
            return False

    def wait_until_ready(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until images can be had.

        Raises:
            BackendUnavailable, DeadlineExceeded: they could not in that time.
        """
        patient = Retries(attempts=int(1e9), first_s=0.1, longest_s=0.5)
        self._make(ready_call(), deadline_s, retries=patient)

    def close(self) -> None:
        """Close the connections; calls after that fail."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make(
        self,
        call: Call[T],
        deadline_s: float | ClientsOwn | None = CLIENTS_OWN,
        retries: Retries | None = None,
    ) -> T:
        given_s = self._deadline_s if isinstance(deadline_s, ClientsOwn) else deadline_s
        attempts = Attempts(retries or self._retries, given_s)
        while True:
            try:
                answer = self._attempt(call, attempts)
                pause_s = attempts.after(answer)
            except httpx.RequestError as failure:
                pause_s = attempts.after_failure(failure)
            if pause_s is None:
                return understood(call, answer, attempts.made)
            time.sleep(pause_s)

    def _attempt(self, call: Call[T], attempts: Attempts) -> httpx.Response:
        """Ask once; the time is looked at after every piece of the answer."""
        headers, timeout = attempts.begin()
        request = self._http.build_request(
            call.method, call.path, params=call.params, json=call.json, headers=headers, timeout=timeout
        )  # fmt: skip
        answer = self._http.send(request, stream=True)
        pieces: list[bytes] = []
        try:
            for piece in answer.iter_bytes():
                pieces.append(piece)
                if attempts.left_s <= 0:
                    raise attempts.too_late()
        finally:
            answer.close()
        return whole(answer, pieces)
