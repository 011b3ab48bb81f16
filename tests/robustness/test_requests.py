"""Requests whose parts are anything: each gets an answer in the terms of the service, never its failure."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.from_thread
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cat_serve.backends.fake import FakeBackend
from cat_serve.latents import MAX_SEED
from cat_serve.settings import MAX_DEADLINE_MS, Settings
from cat_serve.wanted import ImageRequest
from cat_serve.web.addresses import permalink
from cat_serve.web.app import create_app
from cat_serve.web.problems import PROBLEMS
from tests.robustness.tried import PROPERTY, TRIED
from tests.serving.conftest import write_toy

SECONDS = 10.0
CLASSES = ("Cat", "Sea_lion", "crane", "Ankle boot", "crane")
KEY = "0123456789abcdef"
# What a header may hold on the wire: no control characters, and bytes above ASCII as Latin-1.
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)  # fmt: skip
ANYTHING = st.one_of(
    st.text(max_size=40), st.text("0123456789.:,-+eE_ ", max_size=40), st.integers(-5, 70).map(str),
    st.sampled_from(("", "true", "NaN", "1e999", "٣", "png", "npy", "zip", "grid", "0:0.5,1:0.5", "0-3,9", "Cat", "crane")),
)  # fmt: skip
NAMES = ("class", "seed", "seeds", "n", "truncation_psi", "stage", "format", "response", "model", "z", "prompt", "size",
    "frames", "fps", "interpolation", "loop", "response_format", "output_format", "stream", "user", "unknown")  # fmt: skip
JSON_VALUES = st.recursive(
    ANYTHING | st.none() | st.booleans() | st.integers() | st.integers(-2, 10) | st.floats(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip


class Client:
    """An application on the fake engine in another thread, asked from this one."""

    def __init__(self, portal: Any, client: httpx.AsyncClient, service: Any) -> None:
        self._portal, self._client, self.service = portal, client, service

    def __call__(self, method: str, url: str, **options: Any) -> httpx.Response:
        TRIED.add("parsers")
        began_s = time.monotonic()
        request = self._client.build_request(method, url, **options)
        answer: httpx.Response = self._portal.call(self._client.send, request)
        assert time.monotonic() - began_s < SECONDS
        return answer


@contextmanager
def application(folder: Path, **settings: Any) -> Iterator[Client]:
    write_toy(folder / "toy" / "1", CLASSES, stages=3)
    app = create_app(Settings(model_repository=folder, **settings), open_engine=FakeBackend)
    transport = httpx.ASGITransport(app)
    with anyio.from_thread.start_blocking_portal() as portal:
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        with portal.wrap_async_context_manager(app.router.lifespan_context(app)):
            portal.call(app.state.service.settled.wait)
            yield Client(portal, client, app.state.service)
        portal.call(client.aclose)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with application(tmp_path_factory.mktemp("models"), max_images_per_request=6) as client:
        yield client


def require_sane(answer: httpx.Response) -> int:
    """Fail unless it is a success or a problem of the closed list; return the status."""
    if answer.status_code >= 400:
        told = answer.json()
        problem = told.get("error", told)
        kind = PROBLEMS[problem["code"]]
        assert answer.status_code == (
            400 if "error" in told and kind.status == 422 else kind.status
        )
        assert kind.status < 500
        assert len(answer.content) < 8192
    else:
        assert answer.status_code in (200, 304)
    return answer.status_code


@PROPERTY
@given(st.sampled_from(("GET", "POST", "HEAD")), st.sampled_from(("/generate", "/interpolate", "/classes", "/v1/images/generations")), st.lists(st.tuples(st.sampled_from(NAMES), ANYTHING), max_size=5))  # fmt: skip
def test_query_of_anything_is_answered(
    ask: Client, method: str, path: str, query: list[tuple[str, str]]
) -> None:
    encodable = [(name, value.encode("utf-8", "surrogatepass")) for name, value in query]
    answer = ask(method, path, params=[(n, v.decode("utf-8", "replace")) for n, v in encodable])
    if method != "HEAD":
        require_sane(answer)


@PROPERTY
@given(st.sampled_from(("/generate", "/interpolate", "/v1/images/generations")), st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=6))  # fmt: skip
@example("/generate", {"class": "Cat", "z": [0.5] * 6})
@example("/generate", {"class": "Cat", "z": [[0.5]] * 6})
@example("/interpolate", {"class": ["Cat"] * 64, "seed": list(range(64)), "frames": 6})
def test_body_of_anything_is_answered(ask: Client, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    require_sane(ask("POST", path, content=content, headers={"Content-Type": "application/json"}))


@PROPERTY
@given(st.integers(0, MAX_SEED), st.integers(1, 6), st.integers(0, 3), st.sampled_from((0.0, 0.25, 0.7, 1.0)))  # fmt: skip
def test_query_and_body_mean_the_same(
    ask: Client, seed: int, n: int, class_id: int, psi: float
) -> None:
    asked = {"class": class_id, "seed": min(seed, MAX_SEED + 1 - n), "n": n, "truncation_psi": psi}
    query, body = ask("POST", "/generate", params=asked), ask("POST", "/generate", json=asked)
    assert query.status_code == body.status_code == 200
    assert query.content == body.content


@PROPERTY
@given(HEADER | st.integers(-2, 10**8).map(str) | st.sampled_from(("1e3", "٣", "1.0", "+5", " 5", "")))  # fmt: skip
@example("0")
@example("1")
@example(str(MAX_DEADLINE_MS))
@example(str(MAX_DEADLINE_MS + 1))
@example("9" * 5000)
def test_deadline_is_kept_or_refused(ask: Client, text: str) -> None:
    value = text.encode().strip(b" \t")  # as whoever reads the wire does
    answer = ask("POST", "/generate?class=0&seed=1", headers={b"X-Deadline-Ms": value})
    number = value.decode("latin-1")
    if re.fullmatch("[0-9]{1,7}", number) and 1 <= int(number) <= MAX_DEADLINE_MS:
        assert answer.status_code in (200, 504)
        assert int(number) < 1000 or answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_deadline")


@PROPERTY
@given(HEADER | st.lists(st.sampled_from(('"a"', 'W/"a"', "*", '"', "W/", "", '"a","b"', "TAG")), max_size=6).map(", ".join))  # fmt: skip
@example('"' * 5000)
@example(", ".join(['"a"'] * 2000))
def test_tags_are_known_or_not(ask: Client, text: str) -> None:
    url = "/generate?class=0&seed=1"
    tag = ask("GET", url).headers["etag"]
    value = text.replace("TAG", tag).encode("latin-1")
    answer = ask("GET", url, headers={b"If-None-Match": value})
    if tag.encode() in value:
        assert answer.status_code in (200, 304)  # it may stand inside of another tag
    else:
        assert answer.status_code == (304 if value.strip() == b"*" else 200)


@PROPERTY
@given(HEADER, st.sampled_from(("/metrics", "/healthz", "/generate?class=0&seed=1", "/openapi.json")))  # fmt: skip
def test_headers_of_anything_change_nothing(ask: Client, text: str, url: str) -> None:
    value = text.encode("latin-1")
    headers = dict.fromkeys((b"Accept", b"Range", b"X-Request-Id", b"Cookie", b"Origin", b"Traceparent"), value)  # fmt: skip
    answer = ask("GET", url, headers=headers)
    assert answer.status_code == 200
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", answer.headers["x-request-id"])


SEGMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/?#"), max_size=30)


@PROPERTY
@given(SEGMENT, SEGMENT, SEGMENT, SEGMENT, st.sampled_from(("png", "gif", "PNG", "")))
@example("toy", "0123456789ab", "0", "1", "png")
@example("..", "..", "..", "..", "png")
@example("toy", "x" * 200, "9" * 500, "9" * 500, "png")
def test_address_of_anything_is_answered(
    ask: Client, model: str, version: str, class_id: str, seed: str, suffix: str
) -> None:
    path = httpx.URL("/images/" + "/".join(map(quoted, (f"{model}@{version}", class_id, f"{seed}.{suffix}"))))  # fmt: skip
    assert require_sane(ask("GET", str(path))) in (404, 422)


def quoted(text: str) -> str:
    return quote(text, safe="@")


@PROPERTY
@given(st.integers(0, 4), st.integers(0, MAX_SEED), st.floats(0, 1), st.sampled_from((None, 1, 2)), st.sampled_from(("png", "webp", "npy")))  # fmt: skip
def test_permalink_is_the_address_of_the_same_bytes(
    ask: Client, class_id: int, seed: int, psi: float, stage: int | None, name: Any
) -> None:
    asked = ImageRequest(
        ask.service.model(None), {class_id: 1.0}, range(seed, seed + 1), psi + 0.0, stage
    )
    address = permalink(asked, name)
    assert address is not None
    told = {"class": class_id, "seed": seed, "truncation_psi": psi, "format": name, "stage": stage}
    made = ask("POST", "/generate", json=told)
    assert made.status_code == 200
    assert made.headers["x-permalink"] == address
    assert ask("GET", address).content == made.content


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("guarded")
    with application(folder, api_keys=f"alice={KEY}") as client:
        yield client


@PROPERTY
@given(HEADER | st.sampled_from((f"Bearer {KEY}", f"bearer  {KEY} ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer")), HEADER | st.just(KEY))  # fmt: skip
def test_only_a_key_opens(guarded: Client, authorization: str, key: str) -> None:
    headers = {b"Authorization": authorization.encode("latin-1"), b"X-Api-Key": key.encode("latin-1")}  # fmt: skip
    answer = guarded("GET", "/classes", headers=headers)
    scheme, _, token = authorization.strip().partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" and token.strip() else key
    assert answer.status_code == (200 if presented.strip() == KEY else 401)
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
