"""The routes beside /generate, readiness, request ids, and failures of the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from cat_serve.contract import Batch, Output
from cat_serve.errors import BackendUnavailable
from cat_serve.files import sha256_of
from cat_serve.web.problems import PROBLEMS
from cat_serve.web.schemas import accepted

pytestmark = pytest.mark.anyio


async def test_classes_are_listed_by_index_and_name(run_app: Any, add_model: Any) -> None:
    add_model("toy")
    add_model("fashion-32", ("Bag", "Coat", "Dress"))
    async with run_app() as running:
        listed = (await running.client.get("/classes")).json()["models"]
        assert {entry["model"]: entry["default"] for entry in listed} == {
            "fashion-32": True,
            "toy": False,
        }
        one = (await running.client.get("/classes?model=fashion-32")).json()["models"]
        assert one[0]["classes"][1] == {"index": 1, "name": "Coat"}
        missing = await running.client.get("/classes?model=other")
        assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")


async def test_models_show_their_manifests(run_app: Any, add_model: Any) -> None:
    artefact = add_model(parity={"psnr_db": 61.0}, source={"licence": "MIT"})
    async with run_app(max_images_per_request=9, max_queued_images=99) as running:
        card = (await running.client.get("/models")).json()["models"][0]
    assert card == {
        "name": "toy",
        "version": artefact.version,
        "default": True,
        "num_classes": 5,
        "image_size": [8, 12],
        "z_shape": [6],
        "stages": 0,
        "backend": "fake",
        "precision": "fp32",
        "determinism": "bytes",
        "truncation_psi": {"meaning": "w_lerp", "neutral": 1.0},
        "parity": {"psnr_db": 61.0},
        "source": {"licence": "MIT"},
        "files": {
            "golden.png": {
                "sha256": sha256_of(artefact.folder / "golden.png"),
                "size_bytes": (artefact.folder / "golden.png").stat().st_size,
                "precision": None,
                "decoder_precision": None,
                "determinism": None,
            }
        },
        "parameters": accepted(9),
        "limits": {
            "max_images_per_request": 9,
            "max_frames_per_request": 99,  # no more than may wait
            "max_batch": 4,
            "max_queued_images": 99,
            "deadline_ms": None,
        },
    }


async def test_openapi_documents_class_examples_and_every_code(running: Any) -> None:
    document = (await running.client.get("/openapi.json")).json()
    operation = document["paths"]["/generate"]["post"]
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert list(parameters) == [
        "class",
        "seed",
        "truncation_psi",
        "n",
        "seeds",
        "stage",
        "format",
        "response",
        "model",
        "X-Deadline-Ms",
    ]
    assert parameters["X-Deadline-Ms"]["in"] == "header"
    assert "deadline_exceeded" in operation["responses"]["504"]["description"]
    assert "index" in parameters["class"]["description"]
    assert parameters["class"]["schema"]["examples"]
    assert "application/problem+json" in operation["responses"]["422"]["content"]
    assert list(operation["responses"]["200"]["content"]) == [
        "image/png",
        "image/jpeg",
        "image/webp",
        "application/x-npy",
        "application/zip",
        "application/json",
    ]
    assert "EncodedImage" in document["components"]["schemas"]
    problem = document["components"]["schemas"]["Problem"]
    assert problem["properties"]["code"]["enum"] == list(PROBLEMS)
    assert "HTTPValidationError" not in str(document)


async def test_documentation_needs_no_other_host(running: Any) -> None:
    page = (await running.client.get("/docs")).text
    assets = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert len(assets) >= 3
    for asset in assets:
        assert asset.startswith("/"), asset
        assert (await running.client.get(asset)).status_code == 200


@pytest.mark.parametrize("given", ["abc-123", "a.b_c:d", "x" * 64])
async def test_sane_request_id_is_kept(running: Any, given: str) -> None:
    answer = await running.client.get("/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "-x", "x" * 65, 'a"b', "<script>"])
async def test_other_request_ids_are_replaced(running: Any, given: str) -> None:
    answer = await running.client.get("/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] not in ("", given)


async def test_alive_but_not_ready_while_the_model_loads(run_app: Any) -> None:
    release = threading.Event()

    def slow(engine: Any) -> None:
        release.wait(10)

    async with run_app(wait=False, prepare=slow) as running:
        assert (await running.client.get("/healthz")).status_code == 200
        early = await running.client.get("/readyz")
        refused = await running.client.post("/generate?class=1")
        release.set()
        await running.service.settled.wait()
        assert (await running.client.get("/readyz")).json() == {"status": "ready"}
    assert early.status_code == 503
    assert (early.json()["code"], early.json()["phase"]) == ("not_ready", "starting")
    assert (refused.status_code, refused.json()["code"]) == (503, "backend_unavailable")
    assert refused.headers["retry-after"]


def off_by_one(engine: Any) -> None:
    engine.after = lambda answer: Output(answer.images ^ 1, answer.ok)


def never_ok(engine: Any) -> None:
    engine.after = lambda answer: Output(answer.images, ~answer.ok)


@pytest.mark.parametrize("spoil", [off_by_one, never_ok])
async def test_wrong_golden_images_keep_the_service_from_ready(run_app: Any, spoil: Any) -> None:
    async with run_app(prepare=spoil) as running:
        answer = await running.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["phase"] == "failed"
        assert "golden images" in answer.json()["detail"]
        assert (await running.client.post("/generate?class=1")).status_code == 503


async def test_golden_images_within_the_tolerance_are_right(run_app: Any, add_model: Any) -> None:
    artefact = add_model()
    golden = dataclasses.replace(artefact.manifest.golden, max_levels={"fp32": 1})
    add_model(golden=golden)
    async with run_app(prepare=off_by_one) as running:
        assert (await running.client.get("/readyz")).status_code == 200


async def test_unexpected_failure_of_the_start_tells_no_details(run_app: Any) -> None:
    def fail(engine: Any) -> None:
        raise OSError("/secret/place")

    async with run_app(prepare=fail) as running:
        answer = await running.client.get("/readyz")
        assert answer.status_code == 503
        assert "secret" not in answer.text


async def test_not_ready_while_stopping_but_requests_are_still_served(running: Any) -> None:
    running.service.stop_accepting()
    answer = await running.client.get("/readyz")
    assert (answer.status_code, answer.json()["phase"]) == (503, "stopping")
    assert (await running.client.post("/generate?class=1")).status_code == 200


async def test_close_waits_for_work_in_flight_and_frees_the_engines(run_app: Any) -> None:
    async with run_app() as running:
        running.engine.before = lambda batch: time.sleep(0.3)
        working = asyncio.create_task(running.client.post("/generate?class=1"))
        while len(running.engine.batches) == 2:  # warm-up and golden images
            await asyncio.sleep(0.001)
        await running.service.close()
        assert (await working).status_code == 200
        assert running.engine.closed


@pytest.mark.parametrize("spoil", ["not ok", "constant"])
async def test_bad_image_is_a_500_naming_the_seed(running: Any, spoil: str) -> None:
    def black(answer: Output) -> Output:
        return Output(np.zeros_like(answer.images), answer.ok)

    def flagged(answer: Output) -> Output:
        return Output(answer.images, ~answer.ok)

    running.engine.after = flagged if spoil == "not ok" else black
    answer = await running.client.post("/generate?class=1&seed=77")
    assert answer.status_code == 500
    problem = answer.json()
    assert problem["code"] == "bad_output"
    assert problem["seeds"] == [77]
    assert "seed 77" in problem["detail"]


async def test_engine_that_answers_wrongly_is_a_502(running: Any) -> None:
    running.engine.after = lambda answer: Output(answer.images[:, :1], answer.ok)
    answer = await running.client.post("/generate?class=1")
    assert (answer.status_code, answer.json()["code"]) == (502, "backend_error")


async def test_engine_that_is_gone_is_a_503(running: Any) -> None:
    def gone(batch: Batch) -> None:
        raise BackendUnavailable("The engine is gone.", retry_after_s=1)

    running.engine.before = gone
    answer = await running.client.post("/generate?class=1")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")


async def test_unexpected_error_tells_neither_path_nor_traceback(running: Any) -> None:
    def fail(batch: Batch) -> None:
        raise OSError("/secret/place")

    running.engine.before = fail
    answer = await running.client.post("/generate?class=1", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "mine"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    running.engine.before = lambda batch: None
    assert (await running.client.post("/generate?class=1")).status_code == 200
