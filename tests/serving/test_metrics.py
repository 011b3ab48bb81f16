"""What Prometheus gets: every number follows from requests that the test sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cat_serve import __version__
from cat_serve.contract import Output
from cat_serve.metrics import SECONDS
from cat_serve.web import authorization, routes
from cat_serve.web.observed import OTHER

pytestmark = pytest.mark.anyio

BOB, EVE = "bobs-own-secret-key", "eves-own-secret-key"


async def scraped(running: Any, **headers: str) -> dict[tuple[str, frozenset[Any]], float]:
    """Return every sample by its name and labels."""
    answer = await running.client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Any, name: str, **labels: str) -> float | None:
    found: float | None = samples.get((f"cat_serve_{name}", frozenset(labels.items())))
    return found


async def test_images_stages_and_batches_are_counted_by_model(running: Any) -> None:
    for query in ("class=1", "class=2&n=3"):
        assert (await running.client.post(f"/generate?{query}")).status_code == 200
    samples = await scraped(running)
    assert value(samples, "images_total", model="toy") == 4
    for stage in ("queue", "generate", "encode"):
        assert value(samples, f"{stage}_seconds_count", model="toy") == 2
    assert 0 < (value(samples, "generate_seconds_sum", model="toy") or 0) < 10
    assert value(samples, "batch_images_count", model="toy") == 2
    assert value(samples, "batch_images_sum", model="toy") == 4
    assert value(samples, "batch_images_bucket", model="toy", le="1.0") == 1
    assert value(samples, "requests_total", route="/generate", status="2xx") == 2
    assert value(samples, "request_seconds_count", route="/generate") == 2


async def test_buckets_reach_from_a_millisecond_to_a_minute(running: Any) -> None:
    samples = await scraped(running)
    bounds = {
        float(dict(labels)["le"]) for name, labels in samples if name == "cat_serve_queue_seconds_bucket"
    }  # fmt: skip
    assert bounds == {*SECONDS, float("inf")}
    assert (min(bounds), max(SECONDS)) == (0.001, 60)


async def test_problems_are_counted_by_their_code(running: Any) -> None:
    for query in ("class=1&seed=-1", "class=1&seed=x", "class=nothing", "class=1&n=65"):
        assert (await running.client.post(f"/generate?{query}")).status_code == 422
    samples = await scraped(running)
    for code, count in (("bad_seed", 2), ("unknown_class", 1), ("bad_n", 1)):
        assert value(samples, "rejected_total", route="/generate", code=code) == count
    assert value(samples, "requests_total", route="/generate", status="4xx") == 4
    assert value(samples, "images_total", model="toy") == 0


async def test_queue_and_passes_are_shown_as_they_are(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1, max_images_per_request=4, max_queued_images=4) as running:
        running.engine.before = steps
        asked = [asyncio.create_task(running.client.post("/generate?class=1"))]
        await steps.until_entered(1)
        asked.append(asyncio.create_task(running.client.post("/generate?class=2&n=3")))
        await steps.until(lambda: running.service.queued_images("toy") == 3)
        assert (await running.client.post("/generate?class=1&n=2")).status_code == 429
        samples = await scraped(running)
        assert value(samples, "queued_images", model="toy") == 3
        assert value(samples, "passes_in_flight", model="toy") == 1
        assert value(samples, "rejected_total", route="/generate", code="overloaded") == 1
        steps.allow(10)
        await asyncio.gather(*asked)
        await steps.until(lambda: running.service.passes_in_flight("toy") == 0)
        samples = await scraped(running)
        assert value(samples, "queued_images", model="toy") == 0
        assert value(samples, "passes_in_flight", model="toy") == 0


async def test_bad_outputs_are_counted_and_are_no_images(running: Any) -> None:
    running.engine.after = lambda answer: Output(answer.images, ~answer.ok)
    assert (await running.client.post("/generate?class=1&n=3")).status_code == 500
    samples = await scraped(running)
    assert value(samples, "bad_outputs_total", model="toy") == 3
    assert value(samples, "images_total", model="toy") == 0
    assert value(samples, "rejected_total", route="/generate", code="bad_output") == 1


async def test_unexpected_failures_are_counted(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(routes, "_classes_of", fail)
    assert (await running.client.get("/classes")).status_code == 500
    samples = await scraped(running)
    assert value(samples, "requests_total", route="/classes", status="5xx") == 1
    assert value(samples, "rejected_total", route="/classes", code="internal_error") == 1


async def ask_and_leave(app: Any) -> None:
    """Send a request over ASGI and close the connection at once."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
             "scheme": "http", "path": "/generate", "raw_path": b"/generate", "root_path": "",
             "query_string": b"class=1", "headers": [], "client": None, "server": ("test", 80)}  # fmt: skip
    await app(scope, receive, send)


async def test_client_that_left_is_no_error(run_app: Any, steps: Any) -> None:
    async with run_app(concurrency=1) as running:
        running.engine.before = steps
        kept = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        await ask_and_leave(running.app)
        steps.allow(10)
        await kept
        samples = await scraped(running)
        assert value(samples, "client_gone_total", route="/generate") == 1
        assert value(samples, "requests_total", route="/generate", status="2xx") == 1
        assert value(samples, "requests_total", route="/generate", status="4xx") is None
        assert value(samples, "request_seconds_count", route="/generate") == 1


async def test_what_serves_is_named(running: Any) -> None:
    artefact = running.service.model(None).artefact
    samples = await scraped(running)
    assert value(samples, "build_info", version=__version__) == 1
    facts = {"backend": "fake", "precision": "fp32", "determinism": "bytes"}
    assert value(samples, "model_info", model="toy", version=artefact.version, **facts) == 1
    assert value(samples, "engine_ready", model="toy", endpoint="embedded") == 1
    assert value(samples, "ready") == 1
    running.service.stop_accepting()
    assert value(await scraped(running), "ready") == 0


async def test_every_model_is_there_before_its_first_request(run_app: Any, add_model: Any) -> None:
    add_model("one")
    add_model("two")
    async with run_app(model="one") as running:
        samples = await scraped(running)
    for model in ("one", "two"):
        assert value(samples, "images_total", model=model) == 0
        assert value(samples, "queue_seconds_count", model=model) == 0
        assert value(samples, "reloads_total", model=model, outcome="failed") == 0


async def test_what_clients_write_never_becomes_a_label(running: Any) -> None:
    for path in ("/nothing-1", "/nothing-2", "/generate/more"):
        await running.client.get(path)
    await running.client.request("BREW", "/generate")
    await running.client.post("/generate?class=lion-of-mine&model=model-of-mine")
    answer = (await running.client.get("/metrics")).text
    for text in ("nothing", "more", "BREW", "lion", "model-of-mine"):
        assert text not in answer
    samples = await scraped(running)
    assert value(samples, "requests_total", route=OTHER, status="4xx") == 3


async def test_route_of_a_request_without_a_key_is_known_or_other(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        assert (await running.client.post("/generate?class=1")).status_code == 401
        assert (await running.client.post("/secret-path")).status_code == 401
        samples = await scraped(running, **{"x-api-key": BOB})
    assert value(samples, "rejected_total", route="/generate", code="unauthorized") == 1
    assert value(samples, "rejected_total", route=OTHER, code="unauthorized") == 1


async def test_keys_are_counted_by_name(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB},eve={EVE}", key_images_per_minute=4) as running:
        for key, query in ((BOB, "class=1&n=3"), (BOB, "class=1&n=2"), (EVE, "class=1")):
            await running.client.post(f"/generate?{query}", headers={"X-Api-Key": key})
        samples = await scraped(running, authorization=f"Bearer {BOB}")
    assert value(samples, "key_images_total", key="bob") == 3
    assert value(samples, "key_images_total", key="eve") == 1
    assert value(samples, "key_requests_total", key="bob", status="4xx") == 1
    assert value(samples, "key_rejected_total", key="bob", code="budget_exceeded") == 1
    assert value(samples, "key_rejected_total", key="eve", code="budget_exceeded") is None


async def test_applications_count_apart(run_app: Any) -> None:
    async with run_app() as one, run_app() as other:
        assert (await one.client.post("/generate?class=1")).status_code == 200
        assert value(await scraped(one), "images_total", model="toy") == 1
        assert value(await scraped(other), "images_total", model="toy") == 0


async def test_openmetrics_is_given_to_whoever_asks(running: Any) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = await running.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_parameters_are_refused(running: Any) -> None:
    answer = await running.client.get("/metrics?name=x")
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_parameter")


async def test_metrics_leave_the_public_port_if_there_is_another(run_app: Any) -> None:
    async with run_app(admin_port=0) as running:
        assert (await running.client.get("/metrics")).status_code == 404


def test_no_open_path_is_about_metrics() -> None:
    assert {"/", "/healthz", "/readyz"} == authorization.OPEN_PATHS
