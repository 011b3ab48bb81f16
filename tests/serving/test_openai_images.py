"""OpenAI's Images API, through OpenAI's own client: what it gets, and every error class that it knows."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
import uvicorn
from PIL import Image

from cat_serve.images import read_parameters
from cat_serve.web.server import bind

pytestmark = pytest.mark.anyio

KEY = "a-key-of-thirty-two-characters-x"


@asynccontextmanager
async def client_of(running: Any, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client on the application itself; it never tries again unless the test says so."""
    transport = httpx2.ASGITransport(running.app, raise_app_exceptions=False)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(
            base_url="http://test/v1",
            http_client=http,
            **({"api_key": "unused", "max_retries": 0} | options),
        ) as client,
    ):
        yield client


@pytest.fixture
async def client(running: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(running) as made:
        yield made


def decoded(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


async def test_images_are_those_of_generate(running: Any, client: Any) -> None:
    answer = await client.images.generate(
        prompt="sea lion", n=2, extra_body={"seed": 3, "truncation_psi": 0.5}
    )
    wanted = [
        (await running.client.post(f"/generate?class=1&seed={seed}&truncation_psi=0.5")).content
        for seed in (3, 4)
    ]
    assert [decoded(image) for image in answer.data] == wanted
    assert [image.seed for image in answer.data] == [3, 4]
    assert [image.revised_prompt for image in answer.data] == ["Sea_lion", "Sea_lion"]
    assert (answer.size, answer.output_format) == ("12x8", "png")
    assert abs(answer.created - time.time()) < 60
    assert answer.model == running.service.model("toy").label
    assert (answer.truncation_psi, answer.determinism) == (0.5, "bytes")


async def test_one_image_of_a_drawn_seed_is_the_default(running: Any, client: Any) -> None:
    first, second = [await client.images.generate(prompt="0") for _ in range(2)]
    assert len(first.data) == 1
    assert first.data[0].seed != second.data[0].seed
    again = await client.images.generate(prompt="cat", extra_body={"seed": first.data[0].seed})
    assert again.data[0].b64_json == first.data[0].b64_json
    parameters = read_parameters(decoded(first.data[0]))
    assert (parameters["class"], parameters["seed"]) == (0, first.data[0].seed)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
async def test_output_format_is_the_files(client: Any, image_format: str) -> None:
    answer = await client.images.generate(prompt="cat", output_format=image_format)
    with Image.open(io.BytesIO(decoded(answer.data[0]))) as image:
        assert (image.format or "").lower() == image_format == answer.output_format


async def test_parameters_that_change_nothing_are_accepted(running: Any, client: Any) -> None:
    plain = await client.images.generate(prompt="cat", extra_body={"seed": 1})
    answer = await client.images.generate(
        prompt="cat",
        model="toy",
        size="12x8",
        response_format="b64_json",
        background="opaque",
        moderation="low",
        quality="standard",
        stream=False,
        user="somebody",
        extra_body={"seed": 1, "safety_identifier": "somebody"},
    )
    assert answer.data[0].b64_json == plain.data[0].b64_json
    nothing = {"n": None, "size": None, "output_format": None, "model": None, "quality": None}
    answer = await client.images.generate(prompt="cat", extra_body={"seed": 1, **nothing})
    assert answer.data[0].b64_json == plain.data[0].b64_json


async def test_headers_are_those_of_generate(client: Any) -> None:
    raw = await client.images.with_raw_response.generate(prompt="1", extra_body={"seed": 7})
    assert (raw.headers["x-seed"], raw.headers["x-class"]) == ("7", "1")
    assert raw.headers["x-determinism"] == "bytes"
    assert "generate;dur=" in raw.headers["server-timing"]


async def test_models_are_listed(run_app: Any, add_model: Any) -> None:
    artefact = add_model("toy")
    add_model("zoo", ("lion", "tiger", "bear"))
    async with run_app(model="zoo") as running, client_of(running) as client:
        assert [model.id async for model in client.models.list()] == ["toy", "zoo"]
        toy = await client.models.retrieve("toy")
        assert (toy.id, toy.object, toy.owned_by) == ("toy", "model", "cat-serve")
        assert toy.created == int((artefact.folder / "manifest.json").stat().st_mtime)
        default = await client.images.generate(prompt="tiger")
        chosen = await client.images.generate(prompt="sea lion", model="toy")
        assert (default.model[:4], chosen.model[:4]) == ("zoo@", "toy@")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-image-1")
        assert (caught.value.code, caught.value.param) == ("unknown_model", "model")


async def test_url_is_the_permanent_address_of_the_same_file(running: Any, client: Any) -> None:
    given: dict[str, Any] = {"prompt": "1", "n": 2, "output_format": "webp",
                             "extra_body": {"seed": 3, "truncation_psi": 0.5}}  # fmt: skip
    files = (await client.images.generate(**given)).data
    named = (await client.images.generate(**given, response_format="url")).data
    assert [image.b64_json for image in named] == [None, None]
    for file, image in zip(files, named, strict=True):
        assert image.url.startswith("http://test/images/toy@")
        answer = await running.client.get(image.url)
        assert answer.status_code == 200, answer.text
        assert answer.content == decoded(file)


async def test_prompt_may_be_a_mixture(run_app: Any, add_model: Any) -> None:
    add_model(stages=2)
    async with run_app() as running, client_of(running) as client:
        answer = await client.images.generate(prompt="0:0.25,1:0.75", extra_body={"seed": 3})
        wanted = await running.client.post("/generate?class=0:0.25,1:0.75&seed=3")
        assert decoded(answer.data[0]) == wanted.content
        assert answer.data[0].revised_prompt == "0.25 Cat + 0.75 Sea_lion"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.generate(prompt="0:0.25,1:0.75", response_format="url")
        assert (caught.value.code, caught.value.param) == ("bad_response_format", "response_format")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.generate(prompt="0:0.25,1:0.25")
        assert (caught.value.code, caught.value.param) == ("bad_mixture", "prompt")


REFUSED = [
    ({"prompt": "sea loin"}, "unknown_class", "prompt", "Sea_lion"),
    ({"prompt": "a photo of a cat on the moon"}, "unknown_class", "prompt", "5 classes"),
    ({"prompt": "crane"}, "ambiguous_class", "prompt", "2 and 4"),
    ({"prompt": "5"}, "unknown_class", "prompt", "no class 5"),
    ({"prompt": ""}, "bad_prompt", "prompt", "index or name"),
    ({"prompt": "x" * 101}, "bad_prompt", "prompt", "100 characters"),
    ({"prompt": "1", "n": 0}, "bad_n", "n", "1 to 64"),
    ({"prompt": "1", "n": 65}, "bad_n", "n", "64"),
    ({"prompt": "1", "size": "1024x1024"}, "bad_size", "size", "12x8"),
    ({"prompt": "1", "response_format": "file"}, "bad_response_format", "response_format", "url"),
    ({"prompt": "1", "output_format": "gif"}, "bad_output_format", "output_format", "webp"),
    ({"prompt": "1", "quality": "high"}, "unsupported_value", "quality", "one quality"),
    ({"prompt": "1", "background": "transparent"}, "unsupported_value", "background", "opaque"),
    ({"prompt": "1", "style": "vivid"}, "unknown_parameter", "style", "no parameter"),
    ({"prompt": "1", "extra_body": {"steps": 20}}, "unknown_parameter", "steps", "no parameter"),
    ({"prompt": "1", "extra_body": {"class": 1}}, "unknown_parameter", "class", "no parameter"),
    ({"prompt": "1", "extra_body": {"format": "png"}}, "unknown_parameter", "format", "no param"),
    ({"prompt": "1", "extra_query": {"class": 1}}, "unknown_parameter", "class", "no parameter"),
    ({"prompt": "1", "extra_body": {"seed": -1}}, "bad_seed", "seed", "4294967295"),
    ({"prompt": "1", "extra_body": {"seed": True}}, "bad_seed", "seed", "4294967295"),
    ({"prompt": "1", "n": 2, "extra_body": {"seed": 2**32 - 1}}, "bad_seed", "seed", "end at"),
    ({"prompt": "1", "extra_body": {"truncation_psi": 2}}, "bad_truncation_psi",
     "truncation_psi", "0 to 1"),
    ({"prompt": None}, "missing_parameter", "prompt", "ankle boot"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "code", "param", "word"), REFUSED, ids=str)
async def test_what_cannot_be_done_is_a_bad_request(
    running: Any, client: Any, given: dict[str, Any], code: str, param: str, word: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(**given)
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert word in str(error)
    assert error.request_id == error.body["request_id"]
    assert len(running.engine.batches) == 2  # no work was done


async def test_streaming_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="1", stream=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_value", "stream")


async def test_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.images.generate(prompt="1", model="dall-e-3")
    assert (caught.value.code, caught.value.param) == ("unknown_model", "model")
    assert "toy" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/images/edits", b"{}", 404, "not_found"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("GET", "/v1/images/generations", b"", 405, "method_not_allowed"),
        ("POST", "/v1/images/generations", b"x" * (64 * 1024 + 1), 413, "body_too_large"),
        ("POST", "/v1/images/generations", b"{", 400, "bad_body"),
        ("POST", "/v1/images/generations", b"[1]", 400, "bad_body"),
        ("POST", "/v1/images/generations", b"", 400, "bad_body"),
        ("POST", "/v1/images/generations?n=2", b'{"prompt": "1"}', 400, "unknown_parameter"),
    ],
)
async def test_every_error_under_v1_has_openais_shape(
    running: Any, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = await running.client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert {"message", "type", "param", "code"} <= error.keys()
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert ('{"prompt": ' in error["message"]) == (code == "bad_body")  # what would do here


async def test_errors_elsewhere_stay_problems(running: Any) -> None:
    answer = await running.client.post("/v10/images/generations")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


async def test_missing_or_wrong_key_is_an_authentication_error(run_app: Any) -> None:
    async with run_app(api_keys=f"somebody={KEY}") as running:
        async with client_of(running) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.images.generate(prompt="1")
        assert (caught.value.code, caught.value.type) == ("unauthorized", "authentication_error")
        assert "www-authenticate" in caught.value.response.headers
        async with client_of(running, api_key=KEY) as client:
            assert (await client.images.generate(prompt="1")).data


async def test_full_queue_is_a_rate_limit_that_the_client_waits_out(
    run_app: Any, steps: Any
) -> None:
    async with run_app(concurrency=1, max_queued_images=2, max_images_per_request=2) as running:
        running.engine.before = steps
        first = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        second = asyncio.create_task(running.client.post("/generate?class=1&n=2"))
        await steps.until(lambda: running.service.queued_images("toy") == 2)
        async with client_of(running) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.images.generate(prompt="1")
        assert (caught.value.code, caught.value.type) == ("overloaded", "rate_limit_error")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        async with client_of(running, max_retries=2) as client:
            patient = asyncio.create_task(client.images.generate(prompt="1"))
            await asyncio.sleep(0.05)
            steps.allow(10)
            assert (await patient).data
        assert [(await task).status_code for task in (first, second)] == [200, 200]


def broken(batch: Any) -> None:
    raise OSError("broken")


def blank(answer: Any) -> Any:
    answer.images[:] = 0
    return answer


@pytest.mark.parametrize(
    ("fault", "code"), [({"before": broken}, "internal_error"), ({"after": blank}, "bad_output")]
)
async def test_failures_are_internal_server_errors(
    running: Any, client: Any, fault: dict[str, Any], code: str
) -> None:
    vars(running.engine).update(fault)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.images.generate(prompt="1")
    assert (caught.value.status_code, caught.value.code) == (500, code)
    assert caught.value.type == "server_error"


async def test_service_that_is_not_ready_is_an_internal_server_error(run_app: Any) -> None:
    def fail_to_load(engine: Any) -> None:
        engine.before = broken

    async with run_app(prepare=fail_to_load) as running, client_of(running) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.images.generate(prompt="1")
    assert (caught.value.status_code, caught.value.code) == (503, "backend_unavailable")
    assert "retry-after" in caught.value.response.headers


async def test_deadline_that_passes_is_an_internal_server_error(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1) as running, client_of(running) as client:
        running.engine.before = steps
        with pytest.raises(openai.InternalServerError) as caught:
            await client.images.generate(prompt="1", extra_headers={"X-Deadline-Ms": "50"})
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        assert caught.value.body["stage"] in ("queue", "generate")


def test_example_of_the_guide_runs(project_root: Path, tmp_path: Path, shipped_url: str) -> None:
    """Run OpenAI's client from docs/serving.md against a real server, but for the address."""
    guide = (project_root / "docs" / "serving.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    (example,) = [each for each in examples if "from openai import" in each]
    script = example.replace("http://127.0.0.1:8000", shipped_url)
    assert script != example
    subprocess.run([sys.executable, "-W", "error", "-c", script],
                   cwd=tmp_path, timeout=60, check=True)  # fmt: skip
    for seed in (3, 4):
        query = f"class=9&seed={seed}&truncation_psi=0.7"
        wanted = httpx.post(f"{shipped_url}/generate?{query}").content
        assert (tmp_path / f"boot-{seed}.png").read_bytes() == wanted


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with bind("127.0.0.1", 0) as listener:
        yield listener.getsockname()[1]


def test_server_that_is_silent_or_not_there_is_a_time_out_or_no_connection(
    silent_port: int,
) -> None:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{silent_port}/v1", api_key="x", max_retries=0, timeout=0.2
    ) as client, pytest.raises(openai.APITimeoutError):  # fmt: skip
        client.images.generate(prompt="1")
    with bind("127.0.0.1", 0) as listener:
        closed = listener.getsockname()[1]
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{closed}/v1", api_key="x", max_retries=0
    ) as client, pytest.raises(openai.APIConnectionError):  # fmt: skip
        client.images.generate(prompt="1")


async def test_request_of_a_client_that_left_is_dropped(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1) as running, on_a_socket(running) as port:
        running.engine.before = steps
        busy = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused")
        async with client:
            left = asyncio.create_task(client.images.generate(prompt="0", n=6))
            await steps.until(lambda: running.service.queued_images("toy") == 6)
            left.cancel()
            await steps.until(lambda: running.service.queued_images("toy") == 0)
        steps.allow(10)
        assert (await busy).status_code == 200
        assert not any(0 in batch.class_id for batch in running.engine.batches[2:])


@asynccontextmanager
async def on_a_socket(running: Any) -> AsyncIterator[int]:
    """Serve the application over TCP in this event loop; yields the port."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(running.app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving
