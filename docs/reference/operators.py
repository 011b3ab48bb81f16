"""The references of settings and metrics, for whoever runs a server."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from prometheus_client import CollectorRegistry

from docs.reference.markdown import GENERATED, code, page, table

SETTINGS = """# Settings

{generated}

Every setting is a flag of `cat-serve serve` and an environment variable; the flag wins. `cat-serve serve --print-config` shows which
are in effect and where each comes from. `--host` is `CAT_SERVE_HOST`, and so on."""

METRICS = """# Metrics

{generated}

What `/metrics` exposes, in Prometheus' text format or as OpenMetrics. A histogram is exposed with `_bucket`, `_sum` and `_count`
behind its name. Every label has a bounded set of values. [The guide](serving.md#metrics) says what to watch, and
`deploy/` has a dashboard."""

WORDS: dict[Any, str] = {
    int: "integer", float: "number", str: "text", bool: "`true`, `false`", Path: "path",
}  # fmt: skip


def settings_page() -> str:
    """Return docs/settings.md."""
    from cat_serve.settings import ENV_PREFIX, SECRETS, Settings

    rows = []
    for name, field in Settings.model_fields.items():
        flag = "" if name in SECRETS else code(f"--{name.replace('_', '-')}")
        variable = code(ENV_PREFIX + name.upper())
        accepts = f"{_kind(field.annotation)} {_bounds(field.metadata)}".strip()
        rows.append((flag, variable, accepts, _default(field.default), field.description or ""))
    head = ("flag", "variable", "accepts", "default", "meaning")
    return page(SETTINGS.format(generated=GENERATED), table(head, rows))


def metrics_page(registry: CollectorRegistry) -> str:
    """Return docs/metrics.md.

    Args:
        registry: of a server that has answered something.
    """
    rows = sorted(_families(registry))
    return page(
        METRICS.format(generated=GENERATED), table(("metric", "kind", "labels", "meaning"), rows)
    )


def _families(registry: CollectorRegistry) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, kind, labels and meaning of every family of this project's."""
    from cat_serve.metrics import PREFIX, Metrics

    # the library has no other word for the labels of what was not counted yet
    counted = {
        metric._name: metric._labelnames
        for metric in vars(Metrics()).values()
        if hasattr(metric, "_labelnames")
    }
    for family in registry.collect():
        if family.name.startswith(PREFIX):
            seen = dict.fromkeys(label for sample in family.samples for label in sample.labels)
            labels = ", ".join(map(code, counted.get(family.name, seen)))
            name = family.name + ("_total" if family.type == "counter" else "")
            yield code(name), family.type, labels, family.documentation


def _kind(annotation: Any) -> str:
    """Say what a setting may be."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(code, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is tuple:
        return "list of texts"
    return WORDS.get(annotation, "text")


def _bounds(rules: Sequence[Any]) -> str:
    """Say between which values a setting lies."""
    given = {
        name: getattr(rule, name)
        for rule in rules
        for name in ("ge", "gt", "le")
        if hasattr(rule, name)
    }
    least = given.get("ge", given.get("gt"))
    if "le" in given:
        return f"{least} .. {given['le']:,}"
    return "" if least is None else f"{'>=' if 'ge' in given else '>'} {least}"


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    return code(value if isinstance(value, str) else json.dumps(value))
