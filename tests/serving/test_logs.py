"""Log lines: one for each request, in the form that was asked for, with nothing a client or a key says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from cat_serve.contract import Output
from cat_serve.logs import JsonFormatter, TextFormatter
from tests.serving.test_metrics import ask_and_leave

SECRET = "bobs-own-secret-key"

SERVER = """
import sys
from pathlib import Path
from cat_serve import logs
from cat_serve.backends.fake import FakeBackend
from cat_serve.repository import load_models
from cat_serve.settings import Settings
from cat_serve.web.server import serve

settings = Settings(port=0, log_format=sys.argv[2], api_keys="bob=bobs-own-secret-key")
logs.configure("info", settings.log_format)
serve(settings, load_models(Path(sys.argv[1])), FakeBackend)
"""


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """Return the facts of the access lines so far."""
    caplog.set_level(logging.INFO, "cat_serve.access")
    return lambda: [r.facts for r in caplog.records if r.name == "cat_serve.access"]  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_request_for_images_has_one_line_with_all_of_it(running: Any, told: Any) -> None:
    answer = await running.client.post(
        "/generate?class=sea+lion&seed=4&n=2", headers={"X-Request-Id": "mine"}
    )
    (facts,) = told()
    assert facts["ms"] >= facts["generate_ms"] > 0
    assert facts["queue_ms"] >= 0
    assert facts["encode_ms"] > 0
    timing = answer.headers["server-timing"]
    assert f"generate;dur={facts['generate_ms']:.2f}" in timing
    assert f"encode;dur={facts['encode_ms']:.2f}" in timing
    label = running.service.model(None).label
    assert {name: value for name, value in facts.items() if not name.endswith("ms")} == {
        "request_id": "mine", "method": "POST", "route": "/generate", "status": 200, "key": None,
        "model": label, "class": 1, "seed": 4, "n": 2, "code": None, "client_gone": None,
    }  # fmt: skip


@pytest.mark.anyio
async def test_nothing_that_a_client_wrote_is_in_a_line(running: Any, told: Any) -> None:
    await running.client.post("/generate?class=WORD-1&seed=WORD-2")
    await running.client.post("/generate", json={"class": "WORD-3", "WORD-4": 5})
    await running.client.get("/WORD-5", headers={"X-Request-Id": "WORD 6", "User-Agent": "WORD-7"})
    await running.client.request("WORD-8", "/generate")
    lines = told()
    assert [line["status"] for line in lines] == [422, 422, 404, 405]
    assert [line["code"] for line in lines][2:] == ["not_found", "method_not_allowed"]
    assert "WORD" not in str(lines)


@pytest.mark.anyio
async def test_failures_say_which_problem_it_was(running: Any, told: Any) -> None:
    running.engine.after = lambda answer: Output(answer.images, ~answer.ok)
    await running.client.post("/generate?class=1&seed=3")
    (line,) = told()
    assert (line["status"], line["code"], line["seed"]) == (500, "bad_output", 3)


@pytest.mark.anyio
async def test_client_that_left_has_no_status(run_app: Any, steps: Any, told: Any) -> None:
    async with run_app(concurrency=1) as running:
        running.engine.before = steps
        kept = asyncio.create_task(running.client.post("/generate?class=1"))
        await steps.until_entered(1)
        await ask_and_leave(running.app)
        (line,) = told()
        assert (line["client_gone"], line["status"], line["class"]) == (True, None, 1)
        steps.allow(10)
        await kept


@pytest.mark.anyio
async def test_probes_are_told_only_when_they_fail_or_at_debug(
    running: Any, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await running.client.get(path)
    assert told() == []
    running.service.stop_accepting()
    await running.client.get("/readyz")
    (line,) = told()
    assert (line["route"], line["status"], line["code"]) == ("/readyz", 503, "not_ready")
    caplog.set_level(logging.DEBUG, "cat_serve.access")
    await running.client.get("/healthz")
    assert told()[-1]["route"] == "/healthz"


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("some.logger", logging.WARNING, "", 0, "a %s\nb", ("word",), None)
    made.__dict__.update(extra)
    return made


def test_json_line_is_one_line_with_its_facts() -> None:
    line = JsonFormatter().format(record(facts={"n": 2, "none": None}))
    assert "\n" not in line
    values = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", values.pop("ts"))
    assert values == {
        "level": "warning", "logger": "some.logger", "message": "a word\nb", "n": 2
    }  # fmt: skip


def test_json_line_holds_the_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record(exc_info=sys.exc_info())
    values = json.loads(JsonFormatter().format(made))
    assert values["traceback"].endswith("ValueError: why")


def test_text_line_ends_with_the_facts() -> None:
    line = TextFormatter().format(record(facts={"n": 2, "none": None, "model": "toy@1"}))
    assert line.endswith("WARNING some.logger: a word\nb n=2 model=toy@1")


@pytest.mark.parametrize("form", ["json", "text"])
def test_server_logs_everything_in_one_form(
    form: str, add_model: Any, repository: Path, project_root: Path
) -> None:
    add_model()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(repository), form],
        cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = ""
    try:
        assert process.stderr is not None
        while not (found := re.search(r"is ready on (http://127\.0\.0\.1:\d+)", seen)):
            line = process.stderr.readline()
            assert line, seen
            seen += line
        answer = httpx.post(
            f"{found[1]}/generate?class=1&seed=2", headers={"X-Api-Key": SECRET}, timeout=20
        )
        assert answer.status_code == 200
        process.terminate()
        out, rest = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert out == ""
    seen += rest
    assert SECRET not in seen
    if form == "text":
        assert re.search(r"INFO cat_serve.access: request .*route=/generate status=200 .*key=bob .*seed=2", seen)  # fmt: skip
        return
    lines = [json.loads(line) for line in seen.splitlines()]
    assert {"uvicorn.error", "cat_serve.service", "cat_serve.access"} <= {
        line["logger"] for line in lines
    }
    (access,) = [line for line in lines if line["logger"] == "cat_serve.access"]
    assert (access["status"], access["key"], access["seed"]) == (200, "bob", 2)
    assert not [line for line in lines if line["logger"] == "uvicorn.access"]
