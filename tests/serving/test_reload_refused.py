"""New versions that do not fit: what is said of them, and that what was served is served on."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve import versions
from cat_serve.backends.fake import FakeBackend
from cat_serve.errors import BackendUnavailable
from cat_serve.manifest import MANIFEST_NAME, load_artefact
from cat_serve.reloading import on_hangup
from cat_serve.settings import Settings
from cat_serve.wanted import ImageRequest
from tests.serving.reloads import OTHER, admin_of, image_size, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "LINGER_S", 0.05)


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
