"""Several models on one server: what one of them does to the others, under load and at the start."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cat_serve.cli import main
from cat_serve.errors import BackendError, BadOutput
from cat_serve.manifest import load_artefact

pytestmark = pytest.mark.anyio


async def test_two_models_under_load_get_their_own_images_and_share_the_places(
    run_app: Any, add_model: Any
) -> None:
    add_model("a")
    add_model("b", image_size=(8, 16))
    async with run_app(model="a", concurrency=1, max_batch=4) as running:

        async def ask(model: str, seed: int) -> Any:
            query = f"class=1&seed={seed}&model={model}&format=npy"
            return await running.client.post(f"/generate?{query}")

        alone = {model: (await ask(model, 3)).content for model in "ab"}
        answers = await asyncio.gather(*(ask("ab"[i % 2], 3) for i in range(40)))
        for i, answer in enumerate(answers):
            assert (answer.status_code, answer.content) == (200, alone["ab"[i % 2]])
        for model in "ab":
            sizes = [len(batch) for batch in running.engines[model].batches[3:]]
            assert (sum(sizes), max(sizes)) == (20, 4)


async def test_engine_that_fails_under_load_fails_its_own_model_only(
    run_app: Any, add_model: Any
) -> None:
    add_model("good")
    add_model("bad")
    async with run_app(model="good", max_queued_images=1000) as running:

        def fail(batch: Any) -> None:
            raise BackendError("The engine failed.")

        running.engines["bad"].before = fail
        models = ["good", "bad"] * 20
        answers = await asyncio.gather(
            *(running.client.post(f"/generate?class=1&model={model}") for model in models)
        )
        assert [answer.status_code for answer in answers] == [200, 502] * 20
        assert (await running.client.get("/readyz")).status_code == 200
        running.engines["bad"].before = lambda batch: None
        assert (await running.client.post("/generate?class=1&model=bad")).status_code == 200


async def test_queue_of_one_model_that_is_full_leaves_the_others_room(
    run_app: Any, add_model: Any, steps: Any
) -> None:
    add_model("busy")
    add_model("idle")
    async with run_app(
        model="busy", concurrency=2, max_batch=1, max_queued_images=4, max_images_per_request=4
    ) as running:
        running.engines["busy"].before = steps

        def ask(query: str) -> asyncio.Task[Any]:
            return asyncio.create_task(running.client.post(f"/generate?class=1&{query}"))

        busy = [ask("model=busy"), ask("model=busy")]
        await steps.until_entered(2)  # both places
        busy.append(ask("model=busy&n=4"))
        await steps.until(lambda: running.service.queued_images("busy") == 4)
        assert (await ask("model=busy")).status_code == 429
        idle = ask("model=idle&n=4")
        await steps.until(lambda: running.service.queued_images("idle") == 4)
        steps.allow(2 + 4)  # one of each model in turn
        assert (await asyncio.wait_for(idle, 20)).status_code == 200
        steps.allow(100)
        assert [(await task).status_code for task in busy] == [200] * 3


@pytest.mark.parametrize("broken", ["a", "b"])
async def test_model_that_does_not_prove_itself_at_the_start_stops_the_server(
    run_app: Any, add_model: Any, broken: str
) -> None:
    """A server that lacks a model is not what was asked for, so it does not begin."""
    for name in "ab":
        folder = add_model(name).folder
        if name == broken:
            manifest = load_artefact(folder).manifest
            golden = replace(manifest.golden, class_id=(1, 0, 2))
            replace(manifest, golden=golden).save(folder)
    async with run_app(model="a") as running:
        assert running.service.phase == "failed"
        assert isinstance(running.service.failure, BadOutput)
        answer = await running.client.get("/readyz")
        assert answer.status_code == 503
        assert f"The model {broken} on fake" in answer.json()["detail"]
        for name in "ab":
            told = await running.client.post(f"/generate?class=1&model={name}")
            assert told.status_code == 503


def test_damaged_model_beside_a_good_one_ends_the_command_with_what_to_do(
    shipped: Any, add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model("good")
    folder = add_model("damaged").folder
    (folder / "golden.png").write_bytes(b"")
    assert main(["serve", "--model-repository", str(repository), "--model", "good"]) == 1
    said = capsys.readouterr().err
    assert "golden.png of model 'damaged' is not the file its manifest describes" in said
    assert "hint: restore the file" in said
