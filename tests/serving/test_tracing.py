"""Traces: spans of a request and its stages, the caller's context continued, and off unless asked for."""

from __future__ import annotations

import builtins
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
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


async def test_probes_and_scrapes_have_no_trace(
    exporter: InMemorySpanExporter, run_app: Any
) -> None:
    async with run_app() as running:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await running.client.get(path)).status_code == 200
        await running.client.get("/models")
    assert set(spans(exporter)) == {"GET /models"}


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


@pytest.mark.parametrize("variable", tracing.PROTOCOL_VARIABLES)
def test_unknown_protocol_is_refused_and_never_replaced(variable: str) -> None:
    with pytest.raises(InvalidInput, match="http/json") as caught:
        from_environment({"OTEL_TRACES_EXPORTER": "otlp", variable: "http/json"})
    assert "http/protobuf" in (caught.value.hint or "")


def test_grpc_names_the_package_that_it_needs() -> None:
    """The extra has the exporter over HTTP alone."""
    with pytest.raises(MissingDependency) as caught:
        from_environment({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert "opentelemetry-exporter-otlp-proto-grpc" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({}, ("localhost", 4318)),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("localhost", 4317)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://one:4000"}, ("one", 4000)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@one/otlp"}, ("one", 443)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://one:1",
          "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:2/v1/traces"}, ("::1", 2)),
    ],
)  # fmt: skip
def test_collector_is_where_the_variables_say(
    environ: dict[str, str], where: tuple[str, int]
) -> None:
    assert tracing.collector(environ) == where


@contextmanager
def collecting() -> Iterator[tuple[str, list[tuple[str, ResourceSpans]]]]:
    """Take traces as OpenTelemetry's collector does, over HTTP on loopback; yield its address and what came."""
    taken: list[tuple[str, ResourceSpans]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            taken.extend((self.path, spans) for spans in sent.resource_spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


async def test_collector_gets_a_request_as_one_trace(
    run_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as (address, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        async with run_app() as running:
            headers = {"traceparent": TRACEPARENT}
            await running.client.post("/generate?class=1&seed=3", headers=headers)
        # the application sends what is left when it closes
    assert {path for path, _ in taken} == {"/v1/traces"}
    resource = {pair.key: pair.value.string_value for pair in taken[0][1].resource.attributes}
    assert resource["service.name"] == "cat-serve"
    sent = [span for _, each in taken for scope in each.scope_spans for span in scope.spans]
    assert sorted(span.name for span in sent) == ["POST /generate", "encode", "generate", "queue"]
    assert {span.trace_id.hex() for span in sent} == {f"{TRACE:032x}"}


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
