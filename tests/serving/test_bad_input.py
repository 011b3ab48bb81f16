"""What a wrong request gets: a problem with a stable code, the value got and what is accepted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

QUERIES = [
    # query, code, a word of "accepted"
    ("", "missing_parameter", "class"),
    ("seed=1", "missing_parameter", "class"),
    ("class=", "bad_class", "index"),
    (f"class={'x' * 101}", "bad_class", "100 characters"),
    ("class=207", "unknown_class", "from 0 to 4"),
    ("class=5", "unknown_class", "from 0 to 4"),
    ("class=-1", "unknown_class", "from 0 to 4"),
    ("class=sea+loin", "unknown_class", "from 0 to 4"),
    ("class=crane", "ambiguous_class", "[2, 4]"),
    ("class=1&seed=-1", "bad_seed", "4294967295"),
    ("class=1&seed=4294967296", "bad_seed", "4294967295"),
    ("class=1&seed=1.5", "bad_seed", "integer"),
    ("class=1&seed=abc", "bad_seed", "integer"),
    ("class=1&seed=", "bad_seed", "integer"),
    ("class=1&seed=-0", "bad_seed", "integer"),
    ("class=1&seed=%2B1", "bad_seed", "integer"),
    ("class=1&truncation_psi=1.01", "bad_truncation_psi", "0 to 1"),
    ("class=1&truncation_psi=-0.01", "bad_truncation_psi", "0 to 1"),
    ("class=1&truncation_psi=nan", "bad_truncation_psi", "0 to 1"),
    ("class=1&truncation_psi=inf", "bad_truncation_psi", "0 to 1"),
    ("class=1&truncation_psi=high", "bad_truncation_psi", "0 to 1"),
    ("class=1&seed=4294967295&n=2", "bad_seed", "0 to 4294967294 for 2 images"),
    ("class=1&n=0", "bad_n", "1 to 64"),
    ("class=1&n=-1", "bad_n", "1 to 64"),
    ("class=1&n=65", "bad_n", "1 to 64"),
    (f"class=1&n={10**30}", "bad_n", "1 to 64"),
    ("class=1&stage=%2B1", "bad_stage", "integer"),
    ("class=1&n=2.5", "bad_n", "1 to 64"),
    ("class=1&n=two", "bad_n", "1 to 64"),
    ("class=1&n=2&response=image", "bad_response", "grid"),
    ("class=1&response=tar", "bad_response", "zip"),
    ("class=1&format=gif", "bad_format", "jpeg"),
    ("class=1&format=PNG", "bad_format", "png"),
    ("class=1&steps=20", "unknown_parameter", "truncation_psi"),
    ("class=1&Seed=1", "unknown_parameter", "seed"),
    ("class=1&seed=1&seed=2", "repeated_parameter", "once"),
]

BODIES = [
    ({}, "missing_parameter"),
    ({"class": 207}, "unknown_class"),
    ({"class": True}, "bad_class"),
    ({"class": [1]}, "bad_class"),
    ({"class": 1.5}, "bad_class"),
    ({"class": 1, "seed": True}, "bad_seed"),
    ({"class": 1, "seed": 10**40}, "bad_seed"),
    ({"class": 1, "seed": {}}, "bad_seed"),
    ({"class": 1, "truncation_psi": False}, "bad_truncation_psi"),
    ({"class": 1, "truncation_psi": float("nan")}, "bad_truncation_psi"),
    ({"class": 1, "format": "bmp"}, "bad_format"),
    ({"class": 1, "n": True}, "bad_n"),
    ({"class": 1, "n": []}, "bad_n"),
    ({"class": 1, "response": 1}, "bad_response"),
    ({"class": 1, "model": ""}, "bad_model"),
    ({"class": 1, "steps": 20}, "unknown_parameter"),
    ({"class": "\ud800"}, "unknown_class"),
    ([1], "bad_body"),
    ("class", "bad_body"),
]


@pytest.fixture
async def client(running: Any) -> AsyncIterator[Any]:
    """A client; afterwards no engine may have been asked for anything but its golden images."""
    yield running.client
    assert len(running.engine.batches) == 2


def problem_of(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:cat-serve:problem:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(("query", "code", "accepted"), QUERIES)
async def test_wrong_query_is_refused(client: Any, query: str, code: str, accepted: str) -> None:
    problem = problem_of(await client.post(f"/generate?{query}"), 422, code)
    assert accepted in str(problem["accepted"])
    assert code == "missing_parameter" or "got" in problem


@pytest.mark.parametrize(
    ("value", "written"), [(None, "null"), (True, "true"), ("1", "'1'"), (1.5, "1.5")], ids=str
)
async def test_value_is_shown_as_it_was_written(client: Any, value: Any, written: str) -> None:
    answer = await client.post("/generate", json={"class": 1, "n": value})
    assert problem_of(answer, 422, "bad_n")["detail"].startswith(f"n {written} is not an integer")


@pytest.mark.parametrize("query", ["steps=20", "class=1&class=2"])
async def test_parameter_that_is_wrong_is_named(client: Any, query: str) -> None:
    answer = await client.post(f"/generate?{query}")
    assert answer.json()["parameter"] == query.split("=")[0]


@pytest.mark.parametrize("path", ["/generate/", "/v1/models/", "/interpolate/", "/classes/"])
async def test_address_with_a_slash_behind_is_unknown(client: Any, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await client.request(method, path, headers={"host": "elsewhere.example"})
        assert answer.status_code == 404
        assert "location" not in answer.headers


@pytest.mark.parametrize("several", [("5000", "1"), ("1", "5000"), ("5000", "5000")])
async def test_two_deadlines_are_none(client: Any, several: tuple[str, str]) -> None:
    headers = [("X-Deadline-Ms", value) for value in several]
    answer = await client.post("/generate?class=1", headers=headers)
    assert problem_of(answer, 422, "bad_deadline")["got"] == ", ".join(several)


@pytest.mark.parametrize(("body", "code"), BODIES, ids=str)
async def test_wrong_body_is_refused(client: Any, body: Any, code: str) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/generate", content=json.dumps(body), headers=headers)
    problem_of(answer, 422, code)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 60000, b'{"class": ' + b"9" * 5000 + b"}"]
)
async def test_body_that_cannot_be_parsed_is_refused(client: Any, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    problem = problem_of(
        await client.post("/generate", content=content, headers=headers), 422, "bad_body"
    )
    assert "application/json" in problem["hint"]


async def test_body_of_another_type_is_refused(client: Any) -> None:
    problem = problem_of(await client.post("/generate", data={"class": "1"}), 422, "bad_body")
    assert "application/json" in problem["hint"]


async def test_query_and_body_at_once_are_refused(client: Any) -> None:
    answer = await client.post("/generate?class=1", json={"seed": 1})
    problem_of(answer, 422, "query_and_body")


async def test_every_wrong_field_is_listed(client: Any) -> None:
    answer = await client.post("/generate?class=1&seed=-1&format=gif")
    problem = problem_of(answer, 422, "bad_seed")
    assert problem["got"] == "-1"
    assert [error["code"] for error in problem["errors"]] == ["bad_seed", "bad_format"]


async def test_unknown_model_is_404_with_the_names_there_are(client: Any) -> None:
    problem = problem_of(await client.post("/generate?class=1&model=other"), 404, "unknown_model")
    assert problem["accepted"] == ["toy"]


async def test_class_207_of_a_small_model_says_what_there_is(client: Any) -> None:
    problem = problem_of(await client.post("/generate?class=207"), 422, "unknown_class")
    assert problem["got"] == 207
    assert [entry["name"] for entry in problem["classes"]][:2] == ["Cat", "Sea_lion"]
    assert problem["models_with_class"] == []
    assert "cat-m2-256" in problem["hint"]


async def test_class_of_another_model_is_told(run_app: Any, add_model: Any) -> None:
    add_model("fashion-32")
    add_model("big", tuple(f"thing {i}" for i in range(300)))
    async with run_app() as running:
        problem = problem_of(await running.client.post("/generate?class=207"), 422, "unknown_class")
        assert problem["models_with_class"] == ["big"]


@pytest.mark.parametrize("size", [65 * 1024, 10**7])
async def test_large_body_is_refused_by_its_length(client: Any, size: int) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/generate", content=b" " * size, headers=headers)
    assert "65536" in problem_of(answer, 413, "body_too_large")["accepted"]


async def test_large_body_without_a_length_is_refused_while_it_arrives(client: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10**7:
            sent += 1024
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    answer = await client.post("/generate", content=endless(), headers=headers)
    problem_of(answer, 413, "body_too_large")
    assert sent < 10**5


async def test_body_that_does_not_arrive_in_time_is_refused(run_app: Any) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with run_app(request_timeout_s=0.2) as running:
        answer = await running.client.post("/generate", content=slow())
        assert "0.2 s" in problem_of(answer, 408, "request_timeout")["detail"]
        assert answer.headers["connection"] == "close"


async def test_request_by_its_head_is_refused_before_it_is_read(client: Any) -> None:
    long = await client.get("/generate?class=" + "7" * 8192)
    assert "8192" in problem_of(long, 414, "address_too_long")["accepted"]
    large = await client.get("/healthz", headers={"X-A": "b" * 32768})
    assert "32768" in problem_of(large, 431, "head_too_large")["accepted"]
    headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    problem_of(await client.post("/generate", headers=headers), 400, "bad_request")


async def test_member_that_comes_twice_in_a_body_is_refused(client: Any) -> None:
    content = b'{"class": 1, "seed": 2, "class": 3}'
    headers = {"content-type": "application/json"}
    answer = await client.post("/generate", content=content, headers=headers)
    assert problem_of(answer, 422, "repeated_parameter")["got"] == "class"


async def test_head_is_get_without_a_body(running: Any) -> None:
    url = "/generate?class=1&seed=1"
    got, head = await running.client.get(url), await running.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "x-seed", "content-type"):
        assert head.headers[name] == got.headers[name]


async def test_body_of_the_largest_size_is_read(running: Any) -> None:
    content = b'{"class": 1}'.ljust(64 * 1024)
    headers = {"content-type": "application/json"}
    answer = await running.client.post("/generate", content=content, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/classes?x=1", "/models?x=1", "/healthz?x=1", "/readyz?x=1"])
async def test_unknown_query_parameter_is_refused_everywhere(client: Any, path: str) -> None:
    assert problem_of(await client.get(path), 422, "unknown_parameter")["got"] == "x"


async def test_unknown_address_and_wrong_method_are_problems(client: Any) -> None:
    problem_of(await client.get("/nothing"), 404, "not_found")
    answer = await client.put("/generate?class=1")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert (await client.delete("/classes")).headers["allow"] == "GET, HEAD"


async def test_long_values_are_cut_in_the_answer(client: Any) -> None:
    answer = await client.post("/generate", params={"class": "1", "format": "x" * 5000})
    problem_of(answer, 422, "bad_format")
    assert len(answer.content) < 2000
