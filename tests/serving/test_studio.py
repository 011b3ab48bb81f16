"""Stages and explicit rows: the second engine of a model, and the queue in front of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from cat_serve import studio
from cat_serve.backends import open_engine
from cat_serve.backends.base import EngineOptions
from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.triton import TritonEngine
from cat_serve.contract import Batch, StudioBatch, StudioOutput
from cat_serve.deadlines import Deadline
from cat_serve.errors import BackendUnavailable, BadOutput, DeadlineExceeded, InvalidInput
from cat_serve.images import decode_png, read_parameters
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact
from cat_serve.wanted import ImageRequest, StudioRequest

pytestmark = pytest.mark.anyio

MIXTURE = "/generate?class=1:0.5,3:0.5&seed=1"


@pytest.fixture
def staged(add_model: Any) -> Artefact:
    artefact: Artefact = add_model(stages=3)
    return artefact


def rows(seeds: list[int], class_id: int = 1) -> StudioBatch:
    z = latents_from_seeds(seeds, (6,))
    ones = np.ones(len(seeds), np.float32)
    return StudioBatch.of(Batch(z, np.full(len(seeds), class_id), ones))


async def test_stages_are_the_studios_and_the_last_one_is_the_image(
    run_app: Any, staged: Artefact
) -> None:
    async with run_app() as running:
        plain = await running.client.post("/generate?class=1&seed=5")
        assert (
            await running.client.post("/generate?class=1&seed=5&stage=3")
        ).content == plain.content
        assert running.engine.studios == []
        for stage in (1, 2):
            answer = await running.client.post(f"/generate?class=1&seed=5&stage={stage}")
            wanted = decode_png(plain.content) // (4 - stage)
            assert np.array_equal(decode_png(answer.content), wanted)
            assert read_parameters(answer.content)["stage"] == stage
            told = read_parameters(answer.content)
            sent = {name: told[name] for name in ("class", "seed", "n", "stage")}
            assert (await running.client.post("/generate", json=sent)).content == answer.content
        assert "stage" not in read_parameters(plain.content)


async def test_zip_of_a_stage_names_it(run_app: Any, staged: Artefact) -> None:
    async with run_app() as running:
        answer = await running.client.post("/generate?class=1&seed=5&n=2&stage=1&response=zip")
        assert b"toy_class-1_seed-5_stage-1.png" in answer.content


async def test_stage_that_the_model_has_not_is_refused(run_app: Any, staged: Artefact) -> None:
    async with run_app() as running:
        for stage in ("0", "4", "-1", "1.5", "last", ""):
            answer = await running.client.post(f"/generate?class=1&seed=5&stage={stage}")
            assert (answer.status_code, answer.json()["code"]) == (422, "bad_stage"), stage
            assert "from 1 to" in answer.json()["accepted"]
        assert len(running.engine.batches) == 2


@pytest.mark.parametrize("query", ["class=1&stage=1", "class=1:0.5,3:0.5"])
async def test_model_without_a_studio_says_so(running: Any, query: str) -> None:
    answer = await running.client.post(f"/generate?{query}&seed=1")
    assert (answer.status_code, answer.json()["code"]) == (422, "no_studio")
    assert (await running.client.get("/models")).json()["models"][0]["stages"] == 0
    assert len(running.engine.batches) == 2


async def test_triton_engine_has_no_studio(staged: Artefact) -> None:
    engine = TritonEngine(staged, EngineOptions())
    assert engine.studio_determinism is None
    with pytest.raises(InvalidInput) as told:
        await engine.open_studio()
    assert told.value.code == "no_studio"


async def test_explicit_rows_come_back_with_all_stages(run_app: Any, staged: Artefact) -> None:
    async with run_app(max_batch=2) as running:
        model = running.service.model(None)
        images = await running.service.generate(
            StudioRequest(model, rows([3, 4, 5, 6, 7]), stages=True)
        )
        plain = await running.service.generate(ImageRequest.of(model, 1, 3, 1.0, 5))
        assert np.array_equal(images.pixels, plain.pixels)
        assert images.stage_pixels is not None
        assert images.stage_pixels.shape == (5, 3, 8, 12, 3)
        assert np.array_equal(images.stage_pixels[:, -1], images.pixels)
        assert plain.stage_pixels is None
        without = await running.service.generate(StudioRequest(model, rows([3])))
        assert without.stage_pixels is None


async def test_studio_is_opened_once_and_only_when_it_is_needed(
    run_app: Any, staged: Artefact
) -> None:
    async with run_app() as running:
        await running.client.post("/generate?class=1&seed=1")
        assert running.engine.studios == []
        answers = await asyncio.gather(*(running.client.post(MIXTURE) for _ in range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        (opened,) = running.engine.studios
        assert len(opened.batches[0]) == len(staged.manifest.golden.seed)  # proved first
    assert opened.closed


async def test_rows_of_several_requests_share_a_pass_of_the_studio(
    run_app: Any, staged: Artefact, steps: Any
) -> None:
    async with run_app(concurrency=1) as running:
        await running.client.post(MIXTURE)
        (opened,) = running.engine.studios
        opened.before = steps
        first = asyncio.create_task(running.client.post(MIXTURE))
        await steps.until_entered(1)
        others = [
            asyncio.create_task(running.client.post(f"/generate?class=1&stage=1&seed={seed}"))
            for seed in (5, 6, 7)
        ]
        await steps.until(lambda: running.service.queued_images("toy") == 3)
        assert running.service.passes_in_flight("toy") == 1
        steps.allow(2)
        answers = [await task for task in (first, *others)]
        assert [len(batch) for batch in opened.batches[-2:]] == [1, 3]
        steps.allow(3)
        for seed, answer in zip((5, 6, 7), answers[1:], strict=True):
            alone = await running.client.post(f"/generate?class=1&stage=1&seed={seed}")
            assert answer.content == alone.content


async def test_queue_of_the_studio_is_bounded(run_app: Any, staged: Artefact, steps: Any) -> None:
    limits = {"max_images_per_request": 2, "max_queued_images": 2}
    async with run_app(concurrency=1, max_batch=1, **limits) as running:
        await running.client.post(MIXTURE)
        running.engine.studios[0].before = steps
        tasks = [asyncio.create_task(running.client.post(MIXTURE))]
        await steps.until_entered(1)
        tasks += [asyncio.create_task(running.client.post(MIXTURE)) for _ in range(2)]
        await steps.until(lambda: running.service.queued_images("toy") == 2)
        refused = await running.client.post(MIXTURE)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"]
        steps.allow(10)
        assert [(await task).status_code for task in tasks] == [200] * 3


async def test_studio_that_does_not_make_the_golden_images_is_not_used(
    run_app: Any, staged: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "RETRY_AFTER_S", 0.2)
    broken = True

    def spoil(answer: StudioOutput) -> StudioOutput:
        levels = answer.images ^ np.uint8(1) if broken else answer.images
        return StudioOutput(levels, answer.ok, answer.stage_images)

    opens = FakeBackend.open_studio

    def spoilt(engine: FakeBackend) -> Any:
        made = opens(engine)
        made.after = spoil
        return made

    monkeypatch.setattr(FakeBackend, "open_studio", spoilt)
    async with run_app() as running:
        for _ in range(2):  # the second answer is the first one's: it is not tried at every request
            answer = await running.client.post(MIXTURE)
            assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
            assert answer.headers["retry-after"]
        assert len(running.engine.studios) == 1
        assert running.engine.studios[0].closed
        assert (await running.client.post("/generate?class=1&seed=1")).status_code == 200
        assert (await running.client.get("/readyz")).status_code == 200
        broken = False
        await asyncio.sleep(0.25)
        assert (await running.client.post(MIXTURE)).status_code == 200


async def test_last_stage_must_be_the_image(run_app: Any, staged: Artefact) -> None:
    engine = FakeBackend(staged)
    made = engine.open_studio()
    made.after = lambda answer: StudioOutput(
        answer.images, answer.ok, answer.stage_images[:, ::-1].copy()
    )
    from cat_serve.golden import check_studio_golden

    with pytest.raises(BadOutput, match="last stage"):
        check_studio_golden(made)


async def test_bad_rows_of_the_studio_are_a_500_that_names_them(
    run_app: Any, staged: Artefact
) -> None:
    async with run_app() as running:
        await running.client.post(MIXTURE)
        running.engine.studios[0].after = lambda answer: StudioOutput(
            answer.images, np.zeros_like(answer.ok), answer.stage_images
        )
        problem = (await running.client.post(MIXTURE)).json()
        assert (problem["status"], problem["code"]) == (500, "bad_output")
        assert (problem["class"], problem["seeds"]) == ("1:0.5,3:0.5", [1])
        with pytest.raises(BadOutput) as told:
            await running.service.generate(StudioRequest(running.service.model(None), rows([3, 4])))
        assert told.value.details["rows"] == [0, 1]


async def test_deadline_ends_while_the_studio_is_opened_for_others(
    run_app: Any, staged: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, opens = threading.Event(), FakeBackend.open_studio

    def slow(engine: FakeBackend) -> Any:
        assert release.wait(20)
        return opens(engine)

    monkeypatch.setattr(FakeBackend, "open_studio", slow)
    async with run_app() as running:
        patient = asyncio.create_task(running.client.post(MIXTURE))
        started_s = time.perf_counter()
        request = StudioRequest(running.service.model(None), rows([3]))
        with pytest.raises(DeadlineExceeded):
            await running.service.generate(request, Deadline.after(100))
        assert time.perf_counter() - started_s < 5
        release.set()
        answer = await patient
        assert answer.status_code == 200
        queue_ms = float(answer.headers["server-timing"].split(",")[0].removeprefix("queue;dur="))
        assert queue_ms >= 50  # the opening is a time of waiting, too
        assert len(running.engine.studios) == 1


async def test_shipped_studio_is_near_the_plain_graph_in_a_precision_of_its_own(
    shipped: Artefact,
) -> None:
    engine = await open_engine("onnxruntime", shipped, EngineOptions(threads=1, precision="fp32"))
    try:
        made = await engine.open_studio()
        try:
            assert (engine.precision, made.precision) == ("fp32", "fp16")
            batch = shipped.manifest.golden.batch((64,))
            never = Deadline.after(60_000)
            plain = await engine.run(lambda: batch, never)
            mixed = await made.run(lambda: StudioBatch.of(batch), never)
            levels = np.abs(plain.images.astype(int) - mixed.images).max()
            assert levels <= shipped.manifest.golden.max_levels["fp16"]
        finally:
            await made.close()
    finally:
        await engine.close()


async def test_damaged_studio_graph_is_no_harm_to_plain_images(
    shipped: Artefact, tmp_path: Any
) -> None:
    import shutil

    from cat_serve.manifest import STUDIO_NAME
    from cat_serve.service import Service

    folder = tmp_path / "fashion-32" / "1"
    shutil.copytree(shipped.folder, folder)
    damaged = Artefact(folder, shipped.manifest, shipped.version)
    (folder / STUDIO_NAME).write_bytes(b"not a graph")
    service = Service(
        {"fashion-32": damaged},
        "fashion-32",
        lambda artefact: open_engine("onnxruntime", artefact, EngineOptions(threads=1)),
    )
    await service.start()
    try:
        model = service.model(None)
        mixed = ImageRequest(model, {7: 0.5, 9: 0.5}, (1,), 1.0)
        with pytest.raises(BackendUnavailable) as told:
            await service.generate(mixed)
        assert str(folder) not in str(told.value)
        await service.generate(ImageRequest.of(model, 7, 1, 1.0))
    finally:
        await service.close()


async def test_studio_promises_what_was_measured_of_its_own_graph(
    run_app: Any, staged: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "studio_determinism", "latent")
    async with run_app() as running:
        for query, level in (("class=1&seed=1", "bytes"), ("class=1&seed=1&stage=1", "latent")):
            answer = await running.client.get(f"/generate?{query}")
            assert answer.headers["x-determinism"] == level
            assert answer.headers["etag"].startswith("W/") is (level == "latent")
