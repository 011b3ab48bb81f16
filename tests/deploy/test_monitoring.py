"""Dashboard, alerts and scrape configuration: every query is PromQL, and asks for what a real server exposes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from cat_serve.manifest import load_artefact
from cat_serve.metrics import Metrics
from cat_serve.service import Service
from tests.deploy.manifests import Objects, of_kind, pods, ports

ROOT = Path(__file__).parent.parent.parent
DASHBOARD = json.loads((ROOT / "deploy/grafana/cat-serve.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
SCRAPES = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
SCRAPED = {"instance", "job", "namespace", "pod"}  # added by Prometheus
HISTOGRAM = ("_bucket", "_sum", "_count")


def dashboard_queries() -> list[tuple[str, str]]:
    """Return (panel, expression) of every panel; the variables of Grafana as Prometheus would see them."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


def alert_queries() -> list[tuple[str, str]]:
    return [(rule["alert"], rule["expr"]) for group in ALERTS for rule in group["rules"]]


QUERIES = dashboard_queries() + alert_queries()


@cache
def exposed() -> dict[str, set[str]]:
    """Return the labels of every name that a service of the shipped model exposes, counted or not."""
    metrics = Metrics()
    artefact = load_artefact(ROOT / "model_repository" / "fashion-32" / "1")

    async def never(_: Any) -> Any:
        raise AssertionError("nothing is opened here")

    Service({"fashion-32": artefact}, "fashion-32", never, metrics=metrics)
    found: dict[str, set[str]] = {}
    for collector in set(metrics.registry._names_to_collectors.values()):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            names = [family.name]
            if family.type == "counter":
                names = [f"{family.name}_total"]
            if family.type == "histogram":
                names = [family.name + suffix for suffix in HISTOGRAM]
                labels |= {"le"}
            for name in names:
                found.setdefault(name, set()).update(labels)
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # of engines, which are not open here; tests/serving/test_metrics.py sees their labels on a running service
    found["cat_serve_engine_ready"] = {"model", "endpoint"}
    for gauge in ("pace_image_seconds", "pace_pass_seconds", "predicted_seconds"):
        found[f"cat_serve_{gauge}"] = {"model", "graph"}
    found["cat_serve_model_info"] = {"model", "version", "backend", "precision", "determinism"}
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Yield every vector selector of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif hasattr(node, "expr"):
        yield from selectors(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), node


def aggregations(node: Any) -> Iterator[Any]:
    """Yield every aggregation of an expression."""
    if isinstance(node, promql_parser.AggregateExpr):
        yield node
    children = [getattr(node, name) for name in ("expr", "lhs", "rhs") if hasattr(node, name)]
    for child in children + list(getattr(node, "args", [])):
        yield from aggregations(child)


def ids(queries: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in queries]


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=ids(QUERIES))
def test_query_asks_for_metrics_and_labels_that_exist(name: str, expression: str) -> None:
    parsed = promql_parser.parse(expression)
    found = list(selectors(parsed))
    assert found
    for selector in found:
        assert selector.name in exposed(), selector.name
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= exposed()[selector.name] | SCRAPED
    for aggregation in aggregations(parsed):
        labels = set(aggregation.modifier.labels) if aggregation.modifier else set()
        for selector in selectors(aggregation):
            assert labels <= exposed()[selector.name] | SCRAPED


def test_dashboard_shows_every_metric_of_the_product() -> None:
    text = json.dumps(DASHBOARD)
    missing = {name for name in exposed() if name.startswith("cat_serve_")
               and not name.endswith(("_created", *HISTOGRAM)) and name not in text}  # fmt: skip
    assert missing == set()
    for histogram in ("queue_seconds", "generate_seconds", "encode_seconds", "request_seconds"):
        assert f"cat_serve_{histogram}_bucket" in text


def test_codes_and_values_in_queries_exist() -> None:
    from cat_serve.web.problems import PROBLEMS

    codes = re.findall(r'code=~?\\?"([a-z_|]+)', "".join(query for _, query in QUERIES))
    assert codes
    assert {code for group in codes for code in group.split("|")} <= PROBLEMS.keys()


def test_alert_of_failures_counts_every_code_of_the_servers_own() -> None:
    from cat_serve.web.problems import PROBLEMS

    counted = re.search(r'code=~"([a-z_|]+)"', dict(alert_queries())["CatServeRequestsFail"])
    assert counted
    own = {code for code, kind in PROBLEMS.items() if kind.status >= 500}
    assert set(counted[1].split("|")) == own - {"deadline_exceeded"}  # which its client chose


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            kept = set(re.findall(r"by \(([^)]*)\)", target["expr"]))
            labels = {label.strip() for group in kept for label in group.split(",")}
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= (labels or SCRAPED), panel["title"]


def test_panels_have_titles_ids_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and (panel["type"] == "row" or panel["description"]) for panel in panels)  # fmt: skip


def test_variables_that_queries_use_are_declared() -> None:
    declared = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used == declared
    for each in DASHBOARD["templating"]["list"]:
        if each["type"] == "query":
            name = re.match(r"label_values\((\w+)", each["query"]["query"])
            assert name
            assert name[1] in exposed()


def test_alerts_say_how_urgent_they_are_and_what_to_do() -> None:
    for group in ALERTS:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"].keys() == {"summary", "action"}
            named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            selected = [exposed()[s.name] for s in selectors(promql_parser.parse(rule["expr"]))]
            assert named <= set.union(SCRAPED, *selected)


def test_documents_that_alerts_name_are_there() -> None:
    text = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    named = set(re.findall(r"docs/[\w-]+\.md", text))
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_scrapes_read_the_alerts_and_the_annotations_of_the_pods(objects: Objects) -> None:
    assert SCRAPES["rule_files"] == ["alerts.yaml"]
    jobs = {job["job_name"]: job for job in SCRAPES["scrape_configs"]}
    pod = pods(objects)["front-end"]
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/path"] == "/metrics"
    assert int(annotations["prometheus.io/port"]) == ports(pod)["admin"]
    keep, _, port, *_ = jobs["cat-serve-pods"]["relabel_configs"]
    assert re.fullmatch(keep["regex"], annotations["prometheus.io/scrape"])
    replacement = re.sub(r"\$(\d)", r"\\\1", port["replacement"])
    for found in ("10.0.0.7:8000", "10.0.0.7:9000", "10.0.0.7"):
        match = re.fullmatch(port["regex"], f"{found};{annotations['prometheus.io/port']}")
        assert match
        assert match.expand(replacement) == "10.0.0.7:9000"
    assert of_kind(objects, "Namespace").keys() == set(
        jobs["cat-serve-pods"]["kubernetes_sd_configs"][0]["namespaces"]["names"]
    )
