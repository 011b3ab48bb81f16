"""POST /generate with good input, and what its answer carries."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_serve.backends.fake import FakeBackend

pytestmark = pytest.mark.anyio


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


async def test_image_is_the_engines_and_has_the_models_size(running: Any) -> None:
    answer = await running.client.post("/generate?class=1&seed=3&truncation_psi=0.7")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    image = opened(answer.content)
    assert (image.size, image.mode) == ((12, 8), "RGB")
    batch = running.engine.batches[-1]
    assert batch.class_id.tolist() == [1]
    assert batch.truncation_psi.tolist() == [np.float32(0.7)]
    assert np.array_equal(batch.z[0], np.random.RandomState(3).randn(6).astype(np.float32))
    assert np.array_equal(
        np.asarray(image), FakeBackend(running.engine.artefact).run(batch).images[0]
    )


async def test_headers_say_how_to_make_the_image_again(running: Any) -> None:
    answer = await running.client.post("/generate?class=cat&seed=3")
    version = running.service.model("toy").artefact.version
    assert answer.headers["x-seed"] == "3"
    assert answer.headers["x-model"] == f"toy@{version}"
    assert re.fullmatch("[0-9a-f]{12}", version)
    assert answer.headers["x-class"] == "0"
    assert answer.headers["x-determinism"] == "bytes"
    stages = re.findall(r"(\w+);dur=\d+\.\d+", answer.headers["server-timing"])
    assert stages == ["queue", "generate", "encode"]


async def test_png_carries_its_parameters_and_nothing_that_changes(running: Any) -> None:
    answers = [
        await running.client.post("/generate", params=params)
        for params in (
            {"class": "sea lion", "seed": 3},
            {"class": "1", "seed": "3", "truncation_psi": "1.0", "format": "png", "model": "toy"},
        )
    ]
    assert answers[0].content == answers[1].content
    assert json.loads(opened(answers[0].content).info["cat-serve"]) == {
        "model": "toy",
        "version": running.service.model("toy").artefact.version,
        "class": 1,
        "class_name": "Sea_lion",
        "seed": 3,
        "n": 1,
        "truncation_psi": 1.0,
    }


@pytest.mark.parametrize("body", [{"class": 1, "seed": 3}, {"class": "sea-lion", "seed": 3.0}])
async def test_json_body_means_the_same_as_the_query(running: Any, body: dict[str, Any]) -> None:
    query = await running.client.post("/generate?class=1&seed=3")
    assert (await running.client.post("/generate", json=body)).content == query.content


async def test_seed_is_drawn_and_returned_if_absent(running: Any) -> None:
    first = await running.client.post("/generate?class=1")
    second = await running.client.post("/generate?class=1")
    assert first.headers["x-seed"] != second.headers["x-seed"]
    again = await running.client.post(f"/generate?class=1&seed={first.headers['x-seed']}")
    assert again.content == first.content


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
async def test_ends_of_the_seed_range_are_accepted(running: Any, seed: int) -> None:
    answer = await running.client.post(f"/generate?class=1&seed={seed}")
    assert answer.headers["x-seed"] == str(seed)


async def test_negative_zero_is_zero(running: Any) -> None:
    plain = await running.client.post("/generate?class=1&seed=3&truncation_psi=0")
    negative = await running.client.post("/generate?class=1&seed=3&truncation_psi=-0.0")
    assert plain.content == negative.content


async def test_model_chooses_among_several(run_app: Any, add_model: Any) -> None:
    add_model("toy")
    add_model("zoo", ("lion", "tiger", "bear"))
    async with run_app(model="zoo") as running:
        default = await running.client.post("/generate?class=tiger")
        chosen = await running.client.post("/generate?class=sea+lion&model=toy")
        assert default.headers["x-model"].startswith("zoo@")
        assert chosen.headers["x-model"].startswith("toy@")
        assert len(running.engines["toy"].batches) == 3  # warm-up, golden images, this one


async def test_event_loop_answers_while_the_engine_works(running: Any) -> None:
    release = threading.Event()
    running.engine.before = lambda batch: release.wait(10)
    working = asyncio.create_task(running.client.post("/generate?class=1"))
    assert (await asyncio.wait_for(running.client.get("/healthz"), 5)).status_code == 200
    assert not working.done()
    release.set()
    assert (await working).status_code == 200
