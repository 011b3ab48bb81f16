"""OpenTelemetry traces of requests, with the extra `otel`; off unless the standard OTEL_* variables ask for them.

A request is a span of the kind server, continued from the client's `traceparent`. Below it are `queue`, `generate` and
`encode`; calls to Triton carry the context of `generate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cat_serve import __version__
from cat_serve.errors import InvalidInput, MissingDependency
from cat_serve.observation import Metadata, Observation, SpanName

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

EXPORTER = "OTEL_TRACES_EXPORTER"
DISABLED = "OTEL_SDK_DISABLED"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOLS = {"http/protobuf": 4318, "grpc": 4317}  # and the collector's usual port
EXPORTERS = ("otlp", "console", "none")
SERVER_ERROR = 500


class Tracing:
    """Makes a trace of each request.

    Args:
        provider: sends the spans somewhere.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("cat-serve", __version__)

    def begin(self, method: str, headers: Mapping[str, str]) -> RequestTrace:
        """Begin the span of a request, below the span that the headers name, if they do."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            method, propagate.extract(dict(headers)), kind=SpanKind.SERVER
        )
        return RequestTrace(self._tracer, span)

    def continued(self, metadata: Iterable[tuple[str, str]]) -> ContinuedTrace | None:
        """Return the trace of a request that another process of this service began; None if it did not say which."""
        from opentelemetry import propagate, trace

        context = propagate.extract(dict(metadata))
        span = trace.get_current_span(context)
        return ContinuedTrace(self._tracer, span) if span.get_span_context().is_valid else None

    def close(self) -> None:
        """Send what was not sent yet; blocking."""
        self._provider.shutdown()


class ContinuedTrace:
    """The stages below a request's span that is ended elsewhere; see `Trace`."""

    def __init__(self, tracer: Any, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    def stages(self) -> SpanStages:
        return SpanStages(self._tracer, self._span)


class RequestTrace(ContinuedTrace):
    """The span of one request; see `Trace`."""

    def end(self, method: str, route: str, status: int, observed: Observation) -> None:
        """End the span and say what came of the request."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        facts: dict[str, str | int | None] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "error.type": observed.code,
            "cat_serve.request_id": observed.request_id,
            "cat_serve.model": observed.label,
            "cat_serve.class_id": observed.class_id,
            "cat_serve.seed": observed.seed,
            "cat_serve.n": observed.n,
        }
        self._span.set_attributes({k: v for k, v in facts.items() if v is not None})
        if status >= SERVER_ERROR:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class SpanStages:
    """See `Stages`; each is a span."""

    def __init__(self, tracer: Any, parent: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._context = set_span_in_context(parent)
        self._span: Span | None = None

    def enter(self, name: SpanName) -> None:
        self.leave()
        self._span = self._tracer.start_span(name, self._context)

    def leave(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None

    def metadata(self) -> Metadata:
        from opentelemetry import propagate
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        context = set_span_in_context(self._span) if self._span is not None else self._context
        propagate.inject(carrier, context)
        return tuple(carrier.items())


def wanted(environ: Mapping[str, str]) -> str | None:
    """Return the exporter that the variables ask for; None if they ask for no traces.

    Raises:
        InvalidInput: an exporter that is not known here.
    """
    if environ.get(DISABLED, "").strip().lower() == "true":
        return None
    exporter = environ.get(EXPORTER, "").strip()
    if not exporter:
        return "otlp" if any(environ.get(name) for name in ENDPOINTS) else None
    if exporter not in EXPORTERS:
        raise InvalidInput(
            f"{EXPORTER} is {exporter!r}.", code="bad_settings", hint=f"it may be {', '.join(EXPORTERS)}"
        )  # fmt: skip
    return None if exporter == "none" else exporter


def from_environment(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return what the OTEL_* variables ask for; the SDK itself reads the rest of them.

    Raises:
        InvalidInput: an exporter or a protocol that is not known here.
        MissingDependency: they ask for traces, and the packages are not installed.
    """
    exporter = wanted(environ)
    if exporter is None:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "OTEL_SERVICE_NAME" in environ or SERVICE_NAME in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")  # fmt: skip
        provider = TracerProvider(
            resource=Resource.create({} if named else {SERVICE_NAME: "cat-serve"})
        )
        provider.add_span_processor(BatchSpanProcessor(_exporter(exporter, environ)))
    except ImportError as error:
        raise _missing(error, f"pip install 'cat-serve[otel]', or set {EXPORTER}=none") from error
    return Tracing(provider)


def collector(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port that the exporter `otlp` sends to.

    Raises:
        InvalidInput: a protocol or an address that is none.
    """
    endpoint = _first(environ, ENDPOINTS) or "localhost"
    try:
        url = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    except ValueError as error:  # not shown: it may have a password
        raise InvalidInput(
            f"{ENDPOINTS[1]} is no address.", code="bad_settings", hint="it may be http://host:4318"
        ) from error
    return url.hostname or "localhost", port or PROTOCOLS[_protocol(environ)]


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    if name == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)  # stdout is data
    if _protocol(environ) == "grpc":
        return _over_grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _over_grpc() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as error:  # the extra has no gRPC: it is large, and collectors take both
        hint = f"pip install opentelemetry-exporter-otlp-proto-grpc, or set {PROTOCOL_VARIABLES[1]}=http/protobuf"
        raise _missing(error, hint) from error
    return OTLPSpanExporter()


def _protocol(environ: Mapping[str, str]) -> str:
    protocol = _first(environ, PROTOCOL_VARIABLES) or "http/protobuf"
    if protocol not in PROTOCOLS:
        raise InvalidInput(
            f"{PROTOCOL_VARIABLES[1]} is {protocol!r}.",
            code="bad_settings",
            hint=f"it may be {', '.join(PROTOCOLS)}",
        )
    return protocol


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := environ.get(name, "").strip())), None)


def _missing(error: ImportError, hint: str) -> MissingDependency:
    return MissingDependency(
        f"OTEL_* variables ask for traces, and {error.name} is not installed.", hint=hint
    )
