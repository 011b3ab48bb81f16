"""New versions while the service runs: who gets which, what is refused, and that nobody loses a request."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cat_serve import versions
from cat_serve.backends.fake import FakeBackend
from cat_serve.errors import BackendUnavailable
from cat_serve.loaded import Loaded
from cat_serve.manifest import MANIFEST_NAME, load_artefact
from cat_serve.reloading import ModelReload, on_hangup
from cat_serve.settings import Settings
from cat_serve.wanted import ImageRequest
from cat_serve.web.admin import create_admin_app

pytestmark = pytest.mark.anyio

OTHER = (8, 16)  # image size of the second version, which tells it from the first, (8, 12)


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "LINGER_S", 0.05)


@asynccontextmanager
async def admin_of(running: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_admin_app(running.service, Settings())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


async def image_size(running: Any, query: str = "class=1&seed=1") -> tuple[int, int]:
    answer = await running.client.get(f"/generate?{query}&format=npy")
    assert answer.status_code == 200, answer.text
    return shape_of(answer)


def shape_of(answer: httpx.Response) -> tuple[int, int]:
    header = re.search(rb"'shape': \((\d+), (\d+), 3\)", answer.content)
    assert header
    return int(header[1]), int(header[2])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


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
        await until(lambda: not running.service._versions._leaving)
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


def corrupt_file(folder: Path) -> None:
    (folder / "golden.png").write_bytes(b"not a picture")


def corrupt_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text("{")


def wrong_name(folder: Path) -> None:
    artefact = load_artefact(folder)
    replace(artefact.manifest, model="another").save(folder)


def wrong_golden(folder: Path) -> None:
    manifest = load_artefact(folder).manifest
    golden = replace(manifest.golden, class_id=(1, 0, 2))
    replace(manifest, golden=golden).save(folder)


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


@pytest.mark.parametrize(
    "spoil", [corrupt_file, corrupt_manifest, wrong_name, wrong_golden, no_manifest]
)
async def test_version_that_does_not_fit_leaves_the_old_one_serving(
    run_app: Any, add_model: Any, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = add_model()
    async with run_app() as running, admin_of(running) as admin:
        old = running.engine
        folder = add_model(version="2", image_size=OTHER).folder
        spoil(folder)
        with caplog.at_level(logging.INFO, "cat_serve.reloading"):
            answer = await admin.post("/reload")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (409, "reload_failed")
        assert problem["model"] == "toy"
        assert problem["detail"].startswith(f"toy: {first.version} serves on.")
        assert problem["hint"]
        (told,) = problem["models"]
        assert (told["outcome"], told["version"]) == ("failed", first.version)
        assert str(folder.parent) not in answer.text
        assert f"toy is not reloaded, {first.version} serves on" in caplog.text
        assert await image_size(running) == (8, 12)
        assert (await running.client.get("/readyz")).status_code == 200
        assert running.engine is old or running.engine.closed  # what was refused is freed
        assert not old.closed
        failed = 'cat_serve_reloads_total{model="toy",outcome="failed"} 1.0'
        assert failed in (await admin.get("/metrics")).text
        shutil.rmtree(folder)
        second = add_model(version="2", image_size=OTHER)
        answer = await admin.post("/reload")
        assert answer.json() == {
            "models": [
                {
                    "model": "toy",
                    "outcome": "replaced",
                    "version": second.version,
                    "before": first.version,
                }
            ]
        }
        assert await image_size(running) == OTHER


async def test_one_model_that_fails_does_not_hold_up_the_others(
    run_app: Any, add_model: Any
) -> None:
    add_model("a")
    add_model("b")
    async with run_app(model="a") as running:
        wrong_golden(add_model("a", version="2").folder)
        second = add_model("b", version="2", image_size=OTHER)
        add_model("c")
        told = await running.service.reload()
        assert [one.outcome for one in told] == ["failed", "replaced", "added"]
        assert await image_size(running, "class=1&seed=1&model=b") == OTHER
        assert running.service.model("b").artefact.version == second.version


async def test_repository_that_cannot_be_read_changes_nothing(
    run_app: Any, add_model: Any, repository: Path
) -> None:
    add_model()
    async with run_app() as running, admin_of(running) as admin:
        repository.rename(repository.with_name("away"))
        answer = await admin.post("/reload")
        assert (answer.status_code, answer.json()["code"]) == (409, "reload_failed")
        assert str(repository) not in answer.text
        assert await image_size(running) == (8, 12)


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


async def test_reload_during_the_start_waits_and_while_stopping_is_refused(
    run_app: Any, add_model: Any, steps: Any
) -> None:
    add_model()

    def prepare(engine: FakeBackend) -> None:
        engine.before = steps

    async with run_app(wait=False, prepare=prepare) as running, admin_of(running) as admin:
        asked = asyncio.create_task(admin.post("/reload"))
        await steps.until_entered(1)
        assert not asked.done()
        steps.allow(100)
        assert (await asked).status_code == 200
        running.service.stop_accepting()
        late = await admin.post("/reload")
        assert (late.status_code, late.json()["code"]) == (503, "backend_unavailable")


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


async def test_reload_is_on_the_admin_port_alone(running: Any) -> None:
    assert (await running.client.post("/reload")).status_code == 404
    async with admin_of(running) as admin:
        assert (await admin.get("/reload")).status_code == 405
        assert (await admin.post("/reload?x=1")).json()["code"] == "unknown_parameter"
        assert (await admin.post("/reload")).json()["models"][0]["outcome"] == "unchanged"


async def test_hangup_reloads_and_a_failure_does_not_end_it() -> None:
    calls: list[int] = []

    async def reload() -> None:
        calls.append(1)
        raise BackendUnavailable("not now")

    before = signal.getsignal(signal.SIGHUP)
    async with on_hangup(reload):
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda count=count: len(calls) == count)  # type: ignore[misc]
    assert signal.getsignal(signal.SIGHUP) == before


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
        await until(lambda: not running.service._versions._leaving)
        gc.collect()
        alive = [one.version for one in gc.get_objects() if type(one) is Loaded]
        assert [one for one in alive if one in sizes] == [told.version]  # nothing holds what was replaced


async def test_triton_must_serve_the_new_version_first(add_model: Any, repository: Path) -> None:
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    from cat_serve.web.app import create_app
    from tests.serving.test_triton_endpoints import CONFIG, StandIn

    class OneVersion(StandIn):
        """Serves the newest folder that it was told of, as a server that polls its repository does."""

        folder = "1"

        async def ModelConfig(self, request: Any, context: Any) -> Any:
            if request.version != self.folder:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
            request.version = "1"
            return await super().ModelConfig(request, context)

        async def ModelInfer(self, request: Any, context: Any) -> Any:
            if request.model_version != self.folder:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
            request.model_version = "1"
            return await super().ModelInfer(request, context)

    first = add_model()
    servant, server = OneVersion(first), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servant, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    app = create_app(
        Settings(
            model_repository=repository,
            backend="triton",
            triton_url=(f"127.0.0.1:{port}",),
            max_batch=4,
        )
    )
    async with app.router.lifespan_context(app):
        service = app.state.service
        await service.settled.wait()
        second = add_model(version="2", made_with={"round": "2"})
        (told,) = await service.reload()
        assert (told.outcome, told.version) == ("failed", first.version)
        assert told.hint is not None
        assert "Triton servers first" in told.hint
        asked = ImageRequest.of(service.model(None), 1, 1, 1.0)
        assert (await service.generate(asked)).pixels.shape == (1, 8, 12, 3)
        servant.folder = "2"
        servant.config = CONFIG.format(version=second.version, backend="tensorrt")
        (told,) = await service.reload()
        assert (told.outcome, told.version) == ("replaced", second.version)
        made = await service.generate(ImageRequest.of(service.model(None), 1, 1, 1.0))
        expected = FakeBackend(second).run(asked.batch(0, 1))  # type: ignore[arg-type]
        assert np.array_equal(made.pixels, expected.images)
    await server.stop(None)
