"""When the clients ask again, and what with: answers are canned, so that every attempt is seen. Both clients, one policy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from cat_serve.client import AsyncClient, Client, Images, Retries
from cat_serve.client.attempts import MAX_DEADLINE_MS
from cat_serve.client.problems import BY_CODE, error_of
from cat_serve.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    CatServeError,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    UnknownClass,
)
from cat_serve.settings import MAX_DEADLINE_MS as SERVERS_MAX_DEADLINE_MS
from cat_serve.web.problems import PROBLEMS

Answer = httpx.Response | Exception
Ask = Callable[..., Images]

HEADERS = {
    "Content-Type": "image/png",
    "X-Class": "7",
    "X-Model": "toy@0123456789ab",
    "X-Determinism": "bytes",
    "X-Request-Id": "r",
    "Server-Timing": "queue;dur=1.50, generate;dur=2.00, encode;dur=0.25",
}
QUICK = Retries(attempts=3, first_s=0.0, longest_s=0.0)


def problem(status: int, code: str, retry_after: str | None = None, **members: Any) -> Answer:
    headers = {"Content-Type": "application/problem+json"}
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    content = json.dumps({"detail": f"It is {code}.", "code": code, "hint": "h", **members})
    return httpx.Response(status, headers=headers, content=content)


class Canned:
    """A server that answers from a list, and keeps what it was sent; after the list it answers with an image."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return httpx.Response(
                answer.status_code, headers=answer.headers, content=answer.content
            )
        seed = str(json.loads(request.content)["seed"])
        return httpx.Response(200, headers={**HEADERS, "X-Seed": seed}, content=b"image")

    def sent(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Generate with one of the clients: `ask(server, class, retries=..., ...)`."""

    def blocking(server: Canned, class_: Any, retries: Retries = QUICK, **options: Any) -> Images:
        transport = httpx.MockTransport(server)
        with Client(transport=transport, retries=retries, **options.pop("client", {})) as client:
            return client.generate(class_, **options)

    def awaiting(server: Canned, class_: Any, retries: Retries = QUICK, **options: Any) -> Images:
        async def run() -> Images:
            transport = httpx.MockTransport(server)
            more = options.pop("client", {})
            async with AsyncClient(transport=transport, retries=retries, **more) as client:
                return await client.generate(class_, **options)

        return anyio.run(run)

    return blocking if request.param == "Client" else awaiting


@pytest.mark.parametrize(
    "failure",
    [
        problem(429, "overloaded"),
        problem(503, "backend_unavailable"),
        httpx.Response(503, content="<html>no upstream</html>"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("nobody"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed without an answer"),
    ],
    ids=lambda failure: getattr(failure, "status_code", type(failure).__name__),
)
def test_what_passes_is_asked_again_with_the_same_seed(ask: Ask, failure: Answer) -> None:
    server = Canned(failure, failure)
    images = ask(server, 7)
    first, second, third = server.sent()
    assert first == second == third
    assert images.seeds == (first["seed"],)
    assert images.attempts == 3


def test_seed_is_drawn_anew_for_every_call(ask: Ask) -> None:
    server = Canned()
    seeds = {ask(server, 7).seeds[0] for _ in range(4)}
    assert len(seeds) > 1
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 502, 504])
def test_other_errors_are_asked_once(ask: Ask, status: int) -> None:
    server = Canned(httpx.Response(status, content="no"))
    with pytest.raises(CatServeError):
        ask(server, 7)
    assert len(server.requests) == 1


def test_last_error_is_told_when_the_attempts_are_used_up(ask: Ask) -> None:
    server = Canned(*[problem(429, "overloaded", retry_after="0")] * 9)
    with pytest.raises(Overloaded, match="It is overloaded") as caught:
        ask(server, 7)
    assert len(server.requests) == caught.value.details["attempts"] == QUICK.attempts
    assert caught.value.details["retry_after_s"] == 0
    assert caught.value.hint == "h"


def test_server_that_is_not_there_is_told_after_the_attempts(ask: Ask) -> None:
    server = Canned(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(BackendUnavailable, match="did not answer: refused"):
        ask(server, 7)
    assert len(server.requests) == QUICK.attempts


def test_retry_after_is_waited_for(ask: Ask) -> None:
    began_s = time.monotonic()
    ask(Canned(problem(429, "overloaded", retry_after="1")), 7)
    assert 1.0 <= time.monotonic() - began_s < 5


def test_pause_that_the_deadline_does_not_allow_is_not_begun(ask: Ask) -> None:
    server = Canned(problem(429, "overloaded", retry_after="30"))
    began_s = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        ask(server, 7, deadline_s=2)
    assert time.monotonic() - began_s < 1.5
    assert caught.value.details["retry_after_s"] == 30


def test_deadline_is_sent_and_shrinks_with_the_attempts(ask: Ask) -> None:
    server = Canned(problem(503, "not_ready", retry_after="1"))
    ask(server, 7, deadline_s=5)
    first, second = (int(request.headers["X-Deadline-Ms"]) for request in server.requests)
    assert 4000 < first < 5000
    assert second < first - 900


def test_no_deadline_sends_none_and_a_long_one_what_the_server_takes(ask: Ask) -> None:
    server = Canned()
    ask(server, 7, deadline_s=None)
    ask(server, 7, deadline_s=1e6)
    ask(server, 7, client={"deadline_s": 9.0})
    assert "X-Deadline-Ms" not in server.requests[0].headers
    assert int(server.requests[1].headers["X-Deadline-Ms"]) == MAX_DEADLINE_MS
    assert 8000 < int(server.requests[2].headers["X-Deadline-Ms"]) < 9000
    assert MAX_DEADLINE_MS == SERVERS_MAX_DEADLINE_MS


def test_time_out_of_the_connection_is_the_deadline(ask: Ask) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        ask(Canned(httpx.ReadTimeout("late")), 7)
    assert caught.value.details["stage"] == "client"


def test_full_jitter_doubles_up_to_the_longest() -> None:
    retries = Retries(first_s=0.1, longest_s=1.0)
    for attempt, longest_s in ((1, 0.1), (2, 0.2), (3, 0.4), (9, 1.0), (10**9, 1.0)):
        pauses = [retries.pause_s(attempt) for _ in range(200)]
        assert 0 <= min(pauses) < 0.2 * longest_s
        assert 0.8 * longest_s < max(pauses) <= longest_s
    assert 3 <= retries.pause_s(1, 3) <= 3.1


@pytest.mark.parametrize("values", [{"attempts": 0}, {"first_s": 2.0, "longest_s": 1.0}])
def test_retries_that_make_no_sense_are_refused(values: Any) -> None:
    with pytest.raises(InvalidInput, match="attempts >= 1"):
        Retries(**values)


def test_every_code_of_the_server_becomes_an_error_of_its_kind() -> None:
    for code, kind in PROBLEMS.items():
        error = error_of(problem(kind.status, code))  # type: ignore[arg-type]
        assert error.code == code
        expected = BY_CODE.get(code)
        if expected is not None:
            assert type(error) is expected
        elif kind.status == 503:
            assert type(error) is BackendUnavailable
        else:
            assert isinstance(error, InvalidInput if kind.status < 500 else BackendError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Overloaded), (502, BackendError), (503, BackendUnavailable), (504, BackendTimeout),
     (400, InvalidInput), (302, BackendError)],
)  # fmt: skip
def test_page_of_a_proxy_becomes_an_error_by_its_status(
    ask: Ask, status: int, kind: type[CatServeError]
) -> None:
    content = "<html><style>p {color: red}</style><p>Bad\nday</p></html>"
    page = httpx.Response(status, headers={"Content-Type": "text/html"}, content=content)
    with pytest.raises(kind, match=r": Bad day\n") as caught:
        ask(Canned(page), 7, retries=Retries(attempts=1))
    assert type(caught.value) is kind
    assert "no answer of cat-serve's" in str(caught.value.hint)
    assert caught.value.details["status"] == status


def test_details_of_a_problem_are_kept_and_never_replace_the_text(ask: Ask) -> None:
    refused = problem(
        422, "unknown_class", suggestions=["Sneaker"], message="other", self=1, got="sneeker"
    )
    with pytest.raises(UnknownClass, match="It is unknown_class") as caught:
        ask(Canned(refused), "sneeker")
    assert caught.value.details["suggestions"] == ["Sneaker"]
    assert (caught.value.details["got"], caught.value.hint) == ("sneeker", "h")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content="<html>welcome</html>"),
        httpx.Response(200, headers={**HEADERS, "X-Seed": "many"}, content=b"x"),
    ],
)
def test_success_of_another_server_is_no_image(ask: Ask, answer: Answer) -> None:
    with pytest.raises(BackendError, match="not cat-serve's"):
        ask(Canned(answer), 7)


def test_date_in_retry_after_is_understood() -> None:
    answer = problem(503, "not_ready", retry_after="Wed, 21 Oct 2099 07:28:00 GMT")
    assert error_of(answer).details["retry_after_s"] > 1e9  # type: ignore[arg-type]
    answer = problem(503, "not_ready", retry_after="soon")
    assert "retry_after_s" not in error_of(answer).details  # type: ignore[arg-type]


def test_key_is_sent_and_not_shown(ask: Ask) -> None:
    server = Canned()
    ask(server, 7, client={"api_key": "secret-key"})
    assert server.requests[0].headers["Authorization"] == "Bearer secret-key"
    client = Client(api_key="secret-key")
    assert "secret-key" not in repr(client) + repr(vars(client))
    client.close()


def test_path_in_the_address_is_kept(ask: Ask) -> None:
    server = Canned()
    ask(server, 7, client={"base_url": "http://gate:8080/images/"})
    assert str(server.requests[0].url) == "http://gate:8080/images/generate"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "ftp://there", "http://", "http://here:port", ""]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="is no address"):
        Client(address)


def test_parameters_are_sent_as_the_server_takes_them(ask: Ask) -> None:
    server = Canned()
    ask(server, {7: 0.7, 9: 0.3}, seed=3, truncation_psi=0.5, stage=2, format="webp", model="m")
    ask(server, "ankle boot", seed=0)
    assert server.sent() == [
        {"class": "7:0.7,9:0.3", "seed": 3, "n": 1, "truncation_psi": 0.5, "stage": 2,
         "format": "webp", "model": "m", "response": "image"},
        {"class": "ankle boot", "seed": 0, "n": 1, "truncation_psi": 1.0, "format": "png",
         "response": "image"},
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", ["0-2,9", (0, 1, 2, 9)])
def test_chosen_seeds_take_the_place_of_seed_and_n(ask: Ask, seeds: Any) -> None:
    server = Canned(problem(422, "unknown_parameter"))
    with pytest.raises(InvalidInput, match="It is unknown_parameter"):
        ask(server, 7, seeds=seeds)
    (sent,) = server.sent()
    assert sent["seeds"] == ("0-2,9" if isinstance(seeds, str) else "0,1,2,9")
    assert sent.keys().isdisjoint({"seed", "n"})
    for more in ({"n": 2}, {"seed": 0}, {"z": [0.5]}):
        with pytest.raises(InvalidInput, match="each say which images"):
            ask(server, 7, seeds=seeds, **more)
    assert len(server.requests) == 1


def test_latent_takes_the_place_of_a_seed(ask: Ask) -> None:
    headers = {**HEADERS, "X-Z-Sha256": "00ff"}
    server = Canned(httpx.Response(200, headers=headers, content=b"image"))
    images = ask(server, 7, z=np.array([0.5, -1.25], dtype=np.float32))
    (sent,) = server.sent()
    assert sent["z"] == [0.5, -1.25]
    assert sent.keys().isdisjoint({"seed", "seeds", "n"})
    assert images.seeds == (None,)


@pytest.mark.parametrize("options", [{"truncation_psi": float("nan")}, {"deadline_s": 0}])
def test_values_that_cannot_be_sent_are_refused_here(ask: Ask, options: Any) -> None:
    server = Canned()
    with pytest.raises(InvalidInput):
        ask(server, 7, **options)
    assert server.requests == []
