"""What others reach here and what is reached from here: ports, API keys, the collector of traces."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from cat_serve.doctor.finding import Finding, Verdict
from cat_serve.errors import CatServeError
from cat_serve.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
READABLE_TO_OTHERS = 0o004
ANSWERS_WITHIN_S = 2.0


def look(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything that has an address or a key."""
    yield from _ports(settings)
    yield from _keys(settings)
    yield _traces(environ)


def _ports(settings: Settings) -> Iterator[Finding]:
    from cat_serve.web.listening import ADMIN_SETTING, bind

    wanted = [("port", settings.host, settings.port, "")]
    if settings.admin_port is not None:
        wanted.append(("admin port", settings.admin_host, settings.admin_port, ADMIN_SETTING))
    with ExitStack() as held:  # all at once, as the server has them: two may want the same
        for subject, host, port, setting in wanted:
            try:
                held.enter_context(bind(host, port, setting))
            except CatServeError as error:
                yield Finding("network", subject, Verdict.LACKS, error.message, error.hint)
            else:
                free = f"{port} on {host} is free" if port else f"any free one on {host}"
                yield Finding("network", subject, Verdict.OK, free)


def _keys(settings: Settings) -> Iterator[Finding]:
    from cat_serve.keys import read_keys

    variable = settings.api_keys.get_secret_value() if settings.api_keys else None
    try:
        ring = read_keys(settings.api_keys_file, variable)
    except CatServeError as error:
        yield Finding("network", "API keys", Verdict.LACKS, error.message, error.hint)
        return
    if ring is not None:
        yield Finding("network", "API keys", Verdict.OK, f"keys of {', '.join(ring.names)}")
    elif settings.host not in LOOPBACK:
        yield Finding(
            "network", "API keys", Verdict.WARNING,
            f"none, and {settings.host} is reachable for others",
            "set --api-keys-file, or keep a proxy that asks who it is in front",
        )  # fmt: skip
    else:
        yield Finding("network", "API keys", Verdict.NONE, "none; only this machine can ask")
    file = settings.api_keys_file
    if file is not None and file.stat().st_mode & READABLE_TO_OTHERS:
        yield Finding("network", "API keys", Verdict.WARNING,
                      "everybody on this machine can read the file", f"chmod o-rwx {file}")  # fmt: skip


def _traces(environ: Mapping[str, str]) -> Finding:
    """Open the exporter as the server does, and see whether anybody listens where it sends to."""
    from cat_serve import tracing

    try:
        exporter = tracing.wanted(environ)
        host, port = tracing.collector(environ)
        made = tracing.from_environment(environ)
    except CatServeError as error:
        return Finding("network", "traces", Verdict.LACKS, error.message, error.hint)
    if made is None:
        return Finding("network", "traces", Verdict.NONE, "off; the OTEL_* variables ask for none")
    made.close()
    if exporter != "otlp":
        return Finding("network", "traces", Verdict.OK, f"sent by the exporter {exporter}")
    try:
        socket.create_connection((host, port), ANSWERS_WITHIN_S).close()
    except OSError as error:
        return Finding("network", "traces", Verdict.WARNING,
                       f"nobody takes them at {host}:{port}: {error.strerror or error}",
                       f"start a collector there, or set {tracing.ENDPOINTS[1]}")  # fmt: skip
    return Finding("network", "traces", Verdict.OK, f"sent to {host}:{port}")
