"""Traces: spans of a request and its stages, the caller's context continued, and off unless asked for."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cat_serve import tracing
from cat_serve.errors import InvalidInput, MissingDependency
from cat_serve.tracing import Tracing, from_environment, wanted

pytestmark = pytest.mark.anyio

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Trace every application of the test into memory."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr("cat_serve.web.app.from_environment", lambda: Tracing(provider))
    return made


def spans(exporter: InMemorySpanExporter) -> dict[str, Any]:
    found = exporter.get_finished_spans()
    names = {span.name: span for span in found}
    assert len(names) == len(found)
    return names


async def test_request_and_its_stages_are_spans(
    exporter: InMemorySpanExporter, run_app: Any
) -> None:
    async with run_app() as running:
        await running.client.post(
            "/generate?class=sea_lion&seed=3&n=2", headers={"X-Request-Id": "mine"}
        )
        label = running.service.model(None).label
    found = spans(exporter)
    assert set(found) == {"POST /generate", "queue", "generate", "encode"}
    whole = found.pop("POST /generate")
    assert (whole.kind, whole.parent, whole.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)  # fmt: skip
    assert dict(whole.attributes) == {
        "http.request.method": "POST", "http.route": "/generate", "http.response.status_code": 200,
        "cat_serve.request_id": "mine", "cat_serve.model": label, "cat_serve.class_id": 1,
        "cat_serve.seed": 3, "cat_serve.n": 2,
    }  # fmt: skip
    for stage in found.values():
        assert stage.parent.span_id == whole.context.span_id
        assert whole.start_time <= stage.start_time <= stage.end_time <= whole.end_time
    assert found["queue"].end_time <= found["generate"].start_time
    assert found["generate"].end_time <= found["encode"].start_time


async def test_trace_of_the_client_is_continued(
    exporter: InMemorySpanExporter, run_app: Any
) -> None:
    async with run_app() as running:
        await running.client.get("/classes", headers={"traceparent": TRACEPARENT})
        await running.client.get("/models", headers={"traceparent": "nonsense"})
    found = spans(exporter)
    span = found["GET /classes"]
    assert (span.context.trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert found["GET /models"].parent is None


async def test_stage_that_a_deadline_ended_is_ended_too(
    exporter: InMemorySpanExporter, run_app: Any, steps: Any
) -> None:
    async with run_app(concurrency=1) as running:
        running.engine.before = steps
        late = await running.client.post("/generate?class=1", headers={"X-Deadline-Ms": "200"})
        assert late.status_code == 504
        steps.allow(10)
    found = spans(exporter)
    assert set(found) == {"POST /generate", "queue", "generate"}
    whole = found["POST /generate"]
    assert whole.status.status_code is StatusCode.ERROR
    assert whole.attributes["error.type"] == "deadline_exceeded"
    assert found["generate"].end_time <= whole.end_time


async def test_refused_request_has_a_span_without_stages(
    exporter: InMemorySpanExporter, run_app: Any
) -> None:
    async with run_app(api_keys="bob=bobs-own-secret-key") as running:
        await running.client.post("/generate?class=1")
    found = spans(exporter)
    assert set(found) == {"POST /generate"}
    attributes = found["POST /generate"].attributes
    assert (attributes["error.type"], attributes["http.response.status_code"]) == ("unauthorized", 401)  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "exporter"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, None),
    ],
)
def test_standard_variables_decide(environ: dict[str, str], exporter: str | None) -> None:
    assert wanted(environ) == exporter


def test_unknown_exporter_is_refused() -> None:
    with pytest.raises(InvalidInput, match="smoke"):
        from_environment({"OTEL_TRACES_EXPORTER": "smoke"})


def test_nothing_is_imported_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert from_environment({}) is None
    with pytest.raises(MissingDependency, match=r"opentelemetry.*not installed") as caught:
        from_environment({"OTEL_TRACES_EXPORTER": "otlp"})
    assert "cat-serve[otel]" in str(caught.value)


def test_spans_name_the_service_and_go_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tracing.from_environment({"OTEL_TRACES_EXPORTER": "console"})
    assert made is not None
    made.begin("GET", {}).end("GET", "/classes", 200, tracing.Observation())
    made.close()
    told = capsys.readouterr()
    assert told.out == ""
    assert '"name": "GET /classes"' in told.err
    assert '"service.name": "cat-serve"' in told.err
