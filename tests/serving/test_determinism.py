"""One seed, one image, to the byte: alone, in any batch, after a restart, embedded and over a real Triton."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export.triton_server.server import TritonServer
from tests.serving.processes import shipped_server

pytestmark = pytest.mark.anyio

CROWD = 12
SEEDS = f"40-{40 + CROWD - 1}"
Z = [((i * 37) % 64 - 31.5) / 16 for i in range(64)]
PLAIN: dict[str, dict[str, Any]] = {
    "png": {"class": 7, "seed": 1},
    "webp": {"class": "ankle boot", "seed": 4294967295, "format": "webp", "truncation_psi": 0.7},
    "jpeg": {"class": 3, "seed": 40, "format": "jpeg", "truncation_psi": 0},
    "npy": {"class": 0, "seed": 45, "format": "npy"},
    "grid": {"class": 2, "seeds": SEEDS},
    "zip": {"class": 2, "seeds": "5,1", "response": "zip"},
    "z": {"class": 9, "z": Z},
}
STUDIO: dict[str, dict[str, Any]] = {
    "mixture": {"class": "7:0.7,9:0.3", "seed": 1},
    "stage": {"class": 7, "seed": 1, "stage": 1},
}


async def answer_to(client: httpx.AsyncClient, sent: Mapping[str, Any], level: str) -> bytes:
    answer = await client.post("/generate", json=sent)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-determinism"] == level
    return answer.content


async def alone(client: httpx.AsyncClient, wanted: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the answer to each request, none at the same time as another."""
    return {name: await answer_to(client, sent, "bytes") for name, sent in wanted.items()}


async def in_a_crowd(client: httpx.AsyncClient, wanted: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the same answers, all asked for at once, in the other order, beside other images."""
    others = [{"class": i % 10, "seed": 1000 + i, "n": 3} for i in range(CROWD)]
    names = list(reversed(wanted))
    sent = [*others, *(wanted[name] for name in names)]
    answers = await asyncio.gather(*(answer_to(client, each, "bytes") for each in sent))
    return dict(zip(names, answers[len(others) :], strict=True))


@asynccontextmanager
async def front_end(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application in this process on the model that ships."""
    app = create_app(Settings(threads=1, **settings))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
    ):
        await app.state.service.settled.wait()
        yield client


@pytest.fixture(scope="module")
async def expected(anyio_backend: str) -> dict[str, bytes]:
    """What the embedded engine answers to each request, alone, one image in a pass."""
    async with front_end(max_batch=1) as client:
        return await alone(client, PLAIN | STUDIO)


async def test_requests_differ(expected: Mapping[str, bytes]) -> None:
    assert len(set(expected.values())) == len(PLAIN | STUDIO)


@pytest.mark.parametrize("max_batch", [3, 64])
async def test_any_batch_gives_the_bytes_of_one_image_alone(
    expected: Mapping[str, bytes], max_batch: int
) -> None:
    async with front_end(max_batch=max_batch) as client:
        assert await in_a_crowd(client, PLAIN | STUDIO) == expected
        sent = {
            "class": 3,
            "seeds": SEEDS,
            "format": "jpeg",
            "truncation_psi": 0,
            "response": "json",
        }
        answer = await client.post("/generate", json=sent)
        first = base64.b64decode(answer.json()["images"][0]["base64"])
        assert first == expected["jpeg"]


@pytest.mark.slow
async def test_restarted_server_gives_the_same_bytes(expected: Mapping[str, bytes]) -> None:
    for ask in (alone, in_a_crowd):
        with shipped_server() as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                assert await ask(client, PLAIN | STUDIO) == expected


async def test_real_triton_gives_the_bytes_of_the_embedded_engine(
    expected: Mapping[str, bytes], triton_server: TritonServer
) -> None:
    plain = {name: expected[name] for name in PLAIN}
    async with front_end(backend="triton", triton_url=(triton_server.grpc_url,)) as client:
        assert await alone(client, PLAIN) == plain
        assert await in_a_crowd(client, PLAIN) == plain
        for sent in STUDIO.values():
            answer = await client.post("/generate", json=sent)
            assert (answer.status_code, answer.json()["code"]) == (422, "no_studio")
        assert (await client.get("/models")).json()["models"][0]["stages"] == 0


@pytest.mark.slow
async def test_checkpoint_in_torch_promises_the_latent_alone(project_root: Path) -> None:
    checkpoints = project_root / "checkpoints"
    async with front_end(backend="torch", checkpoints=checkpoints) as client:
        for sent in (PLAIN["png"], *STUDIO.values()):
            image = await answer_to(client, sent, "latent")
            assert image.startswith(b"\x89PNG")
        answer = await client.get("/generate?class=7&seed=1")
        assert answer.headers["etag"].startswith("W/")
