"""New versions while the service runs: who gets which, what is refused, and that nobody loses a request."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cat_serve import versions
from cat_serve.backends.fake import FakeBackend
from cat_serve.errors import BackendUnavailable
from cat_serve.loaded import Loaded
from cat_serve.reloading import ModelReload
from cat_serve.wanted import ImageRequest
from tests.serving.reloads import OTHER, image_size, shape_of, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "LINGER_S", 0.05)


async def test_newest_version_takes_over_and_the_old_one_is_freed(
    run_app: Any, add_model: Any
) -> None:
    first = add_model()
    async with run_app() as running:
        old = running.engine
        link = (await running.client.post("/generate?class=1&seed=1")).headers["x-permalink"]
        tag = (await running.client.get("/generate?class=1&seed=1")).headers["etag"]
        second = add_model(version="2", image_size=OTHER)
        assert await image_size(running) == (8, 12)  # nothing changes by itself
        (told,) = await running.service.reload()
        assert told == ModelReload("toy", "replaced", second.version, first.version)
        answer = await running.client.get(
            "/generate?class=1&seed=1", headers={"If-None-Match": tag}
        )
        assert (answer.status_code, answer.headers["x-model"]) == (200, f"toy@{second.version}")
        assert await image_size(running) == OTHER
        missing = await running.client.get(link)
        assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
        assert missing.json()["accepted"] == [second.version]
        moved = link.replace(first.version, second.version)
        assert (await running.client.get(moved)).content == answer.content
        (card,) = (await running.client.get("/models")).json()["models"]
        assert (card["version"], card["image_size"]) == (second.version, list(OTHER))
        await until(lambda: old.closed)
        assert not running.engine.closed
        metrics = (await running.client.get("/metrics")).text
        assert 'cat_serve_reloads_total{model="toy",outcome="replaced"} 1.0' in metrics
        assert f'version="{second.version}"' in metrics
        assert first.version not in metrics
        (again,) = await running.service.reload()
        assert again.outcome == "unchanged"
    assert running.engine.closed


async def test_what_was_admitted_before_is_made_by_the_old_engine(
    run_app: Any, add_model: Any, steps: Any
) -> None:
    first = add_model()
    async with run_app(concurrency=2) as running:
        old = running.engine
        old.before = steps
        before = [
            asyncio.create_task(running.client.post(f"/generate?class=1&n={n}&format=npy"))
            for n in (1, 9, 9)
        ]
        await steps.until_entered(2)
        assert running.service.queued_images("toy") > 0
        second = add_model(version="2", image_size=OTHER)
        reloading = asyncio.create_task(running.service.reload())
        await until(lambda: running.service.revision > 1)
        await asyncio.wait_for(reloading, 20)  # it does not wait for the old requests
        after = asyncio.create_task(running.client.post("/generate?class=1&format=npy"))
        await asyncio.sleep(0.1)  # the old ones hold both places, and are still made
        assert not old.closed
        steps.allow(100)
        for answer in [await task for task in before]:
            assert (answer.status_code, answer.headers["x-model"]) == (
                200,
                f"toy@{first.version}",
            )
        assert (await after).headers["x-model"] == f"toy@{second.version}"
        assert shape_of(await after) == OTHER
        await until(lambda: old.closed)


async def test_version_that_was_resolved_before_the_switch_is_made_by_itself_or_refused(
    run_app: Any, add_model: Any
) -> None:
    add_model()
    async with run_app() as running:
        old_model = running.service.model(None)
        add_model(version="2", image_size=OTHER)
        await running.service.reload()
        asked = ImageRequest.of(old_model, 1, 1, 1.0)
        made = await running.service.generate(asked)  # a moment after
        assert made.pixels.shape[1:3] == (8, 12)
        await running.service._versions.until_retired()
        with pytest.raises(BackendUnavailable, match="was replaced") as told:
            await running.service.generate(asked)
        assert told.value.details["retry_after_s"] == 1


async def test_new_model_appears_with_its_classes_and_in_the_document(
    run_app: Any, add_model: Any
) -> None:
    add_model()
    async with run_app(model="toy") as running:
        assert (await running.client.post("/generate?class=0&model=more")).status_code == 404
        before = (await running.client.get("/openapi.json")).text
        add_model("more", class_names=("Zeppelin", "Yacht"))
        told = await running.service.reload()
        assert [(one.model, one.outcome) for one in told] == [
            ("more", "added"),
            ("toy", "unchanged"),
        ]
        answer = await running.client.post("/generate?class=zeppelin&model=more")
        assert answer.headers["x-model"].startswith("more@")
        classes = (await running.client.get("/classes")).json()["models"]
        assert {one["model"] for one in classes} == {"toy", "more"}
        assert (await running.client.post("/generate?class=1")).headers["x-model"][:4] == "toy@"
        document = (await running.client.get("/openapi.json")).text
        assert "Zeppelin" in document
        assert "Zeppelin" not in before
        assert (
            'cat_serve_images_total{model="more"} 1.0'
            in (await running.client.get("/metrics")).text
        )
    async with run_app(model="toy") as fresh:  # what is made again is what a new server makes
        assert (await fresh.client.get("/openapi.json")).text == document


async def test_model_that_is_gone_serves_on_and_an_older_version_comes_back(
    run_app: Any, add_model: Any, repository: Path
) -> None:
    add_model("more")
    first, _ = add_model(), add_model(version="2", image_size=OTHER)
    async with run_app(model="toy") as running:
        assert await image_size(running) == OTHER
        shutil.rmtree(repository / "toy" / "2")
        shutil.rmtree(repository / "more")
        more, toy = await running.service.reload()
        assert (more.outcome, toy.outcome, toy.version) == ("missing", "replaced", first.version)
        assert await image_size(running) == (8, 12)
        assert await image_size(running, "class=1&seed=1&model=more") == (8, 12)


async def test_two_reloads_at_once_are_one_after_the_other(run_app: Any, add_model: Any) -> None:
    add_model()
    opened: list[str] = []
    opening, most = 0, 0
    lock = threading.Lock()

    def prepare(engine: FakeBackend) -> None:
        def before(batch: Any) -> None:
            nonlocal opening, most
            with lock:
                opening += 1
                most = max(most, opening)
            threading.Event().wait(0.02)
            with lock:
                opening -= 1

        opened.append(engine.artefact.version)
        engine.before = before

    async with run_app(prepare=prepare) as running:
        second = add_model(version="2", image_size=OTHER)
        told = await asyncio.gather(*(running.service.reload() for _ in range(3)))
        assert [one.outcome for (one,) in told] == ["replaced", "unchanged", "unchanged"]
        assert opened[1:] == [second.version]
        assert most == 1


async def test_studio_follows_and_the_old_one_never_opens_new_files(
    run_app: Any, add_model: Any
) -> None:
    add_model(stages=3)
    query = "class=0:0.5,1:0.5&seed=1"
    async with run_app() as running:
        folder = running.engine.artefact.folder
        shutil.rmtree(folder)
        second = add_model(stages=3, made_with={"round": "2"})  # in the same place, before a reload
        answer = await running.client.get(f"/generate?{query}")
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
        assert await image_size(running) == (8, 12)
        (told,) = await running.service.reload()
        assert (told.outcome, told.version) == ("replaced", second.version)
        assert await image_size(running, query) == (8, 12)
        (studio,) = running.engine.studios
        add_model(stages=3, version="2", image_size=OTHER)
        await running.service.reload()
        await until(lambda: studio.closed)
        assert await image_size(running, query) == OTHER


async def test_old_version_stays_for_whoever_waits_until_its_studio_is_open(
    run_app: Any, add_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add_model(stages=3)
    begun, release, opens = threading.Event(), threading.Event(), FakeBackend.open_studio

    def slow(engine: FakeBackend) -> Any:
        begun.set()
        assert release.wait(20)
        return opens(engine)

    monkeypatch.setattr(FakeBackend, "open_studio", slow)
    async with run_app() as running:
        old = running.engine
        asked = asyncio.create_task(running.client.post("/generate?class=0:0.5,1:0.5"))
        await until(begun.is_set)
        add_model(stages=3, version="2", image_size=OTHER)
        await running.service.reload()
        await asyncio.sleep(4 * versions.LINGER_S)
        assert not old.closed
        release.set()
        answer = await asked
        assert (answer.status_code, answer.headers["x-model"]) == (200, f"toy@{first.version}")
        await until(lambda: old.closed)


async def test_requests_during_many_reloads_all_get_what_their_version_makes(
    run_app: Any, add_model: Any
) -> None:
    sizes = {add_model().version: (8, 12)}
    async with run_app(max_batch=4) as running:
        failures: list[str] = []
        counts = dict.fromkeys(sizes, 0)
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                answer = await running.client.post("/generate?class=1&format=npy")
                version = answer.headers.get("x-model", "@").split("@")[1]
                if answer.status_code != 200 or shape_of(answer) != sizes[version]:
                    failures.append(answer.text if answer.status_code != 200 else version)
                counts[version] = counts.get(version, 0) + 1

        asking = [asyncio.create_task(ask()) for _ in range(6)]
        for number in range(2, 12):
            size = OTHER if number % 2 else (8, 12)
            made_with = {"round": str(number)}
            sizes[add_model(version=str(number), image_size=size, made_with=made_with).version] = size  # fmt: skip
            (told,) = await running.service.reload()
            assert told.outcome == "replaced"
        stop.set()
        await asyncio.gather(*asking)
        assert failures == []
        assert len(counts) > 5
        await running.service._versions.until_retired()
        gc.collect()
        alive = [one.version for one in gc.get_objects() if type(one) is Loaded]
        assert [one for one in alive if one in sizes] == [
            told.version
        ]  # nothing holds what was replaced
