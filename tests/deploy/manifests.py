"""Find one's way in rendered manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cat_serve.settings import Settings

Objects = list[dict[str, Any]]
WITH_TRITON = {"one-gpu": 1, "many-gpu": 8, "object-store": 8}


def of_kind(objects: Objects, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def workloads(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return what makes pods, by name."""
    return of_kind(objects, "Deployment") | of_kind(objects, "StatefulSet")


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return the pod templates by the name of their workload."""
    found = {name: each["spec"]["template"] for name, each in workloads(objects).items()}
    return found | of_kind(objects, "Pod")


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def ports(pod: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of a pod's ports by name."""
    return {
        port["name"]: port["containerPort"]
        for each in containers(pod) for port in each.get("ports", [])
    }  # fmt: skip


def environment(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    return {each["name"]: each["value"] for each in container.get("env", [])}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Say whether a label selector selects something with these labels."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def selectors(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every selector of pods of this namespace with the name of what has it."""
    for each in objects:
        name, spec = f"{each['kind']} {each['metadata']['name']}", each.get("spec", {})
        if each["kind"] == "Service":
            yield name, {"matchLabels": spec["selector"]}
        elif each["kind"] == "NetworkPolicy":
            yield name, spec["podSelector"]
            for peer in [p for rule in spec.get("ingress", []) for p in rule["from"]] + [
                p for rule in spec.get("egress", []) for p in rule["to"]
            ]:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    yield name, peer["podSelector"]
        elif "selector" in spec:
            yield name, spec["selector"]
        for constraint in (
            spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", [])
        ):
            yield name, constraint["labelSelector"]


def setting(pod: dict[str, Any], name: str) -> Any:
    """Return a setting that the server would start with: that of its environment, else the default."""
    given = environment(pod).get(f"CAT_SERVE_{name.upper()}")
    return Settings.model_fields[name].default if given is None else json.loads(given)


def with_triton(objects: Objects, overlay: str) -> bool:
    assert ("triton" in workloads(objects)) == (overlay in WITH_TRITON)
    return overlay in WITH_TRITON
