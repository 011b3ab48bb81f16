"""Who reaches whom: the network policies, evaluated as a cluster would."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.deploy.manifests import Objects, matches

HERE = "cat-serve"


@dataclass(frozen=True)
class Peer:
    """A pod (labels, namespace and its labels), or an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = HERE
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str | None = None


def part(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/component": name}


FRONT_END, TRITON = Peer(part("front-end")), Peer(part("triton"))
INGRESS = Peer({"any": "controller"}, "edge", {"cat-serve/role": "ingress"})
PROMETHEUS = Peer({}, "observe", {"cat-serve/role": "monitoring"})
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system", {"kubernetes.io/metadata.name": "kube-system"})
NEIGHBOUR = Peer({"app": "something else"})
STRANGER = Peer(part("front-end"), "elsewhere", {"kubernetes.io/metadata.name": "elsewhere"})
INTERNET, NODE_METADATA = Peer(address="93.184.215.14"), Peer(address="169.254.169.254")
HTTP, GRPC, METRICS, ADMIN = 8000, 8001, 8002, 9000
NAMED = {"http": HTTP, "grpc": GRPC, "metrics": METRICS, "admin": ADMIN}

# from          to         port     in which overlays ("triton": those with Triton)
ALLOWED = [
    (INGRESS,    FRONT_END, HTTP,    "all"),
    (PROMETHEUS, FRONT_END, ADMIN,   "all"),
    (FRONT_END,  DNS,       53,      "all"),
    (FRONT_END,  TRITON,    GRPC,    "triton"),
    (PROMETHEUS, TRITON,    METRICS, "triton"),
    (FRONT_END,  INTERNET,  443,     "object-store"),
    (TRITON,     INTERNET,  443,     "object-store"),
    (TRITON,     DNS,       53,      "object-store"),
]  # fmt: skip
PEERS = {
    "front end": FRONT_END, "Triton": TRITON, "ingress": INGRESS, "Prometheus": PROMETHEUS, "DNS": DNS,
    "a neighbour": NEIGHBOUR, "a front end of another namespace": STRANGER, "the internet": INTERNET,
    "the node's metadata": NODE_METADATA,
}  # fmt: skip


def is_peer(rule: dict[str, Any], peer: Peer) -> bool:
    """Say whether one entry of `from` or `to` means this peer; several fields of an entry must all hold."""
    if block := rule.get("ipBlock"):
        if peer.address is None:
            return False
        address = ipaddress.ip_address(peer.address)
        excepted = [ipaddress.ip_network(each) for each in block.get("except", [])]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in each for each in excepted)
    if peer.address is not None:
        return False
    if "namespaceSelector" in rule:
        if not matches(rule["namespaceSelector"], peer.namespace_labels):
            return False
    elif peer.namespace != HERE:
        return False
    return matches(rule.get("podSelector", {}), peer.labels)


def passes(objects: Objects, side: str, pod: Peer, other: Peer, port: int) -> bool:
    """Say whether the policies on `pod` let traffic with `other` pass; no policy on it lets all pass."""
    if pod.address is not None or pod.namespace != HERE:
        return True
    policies = [
        each["spec"] for each in objects
        if each["kind"] == "NetworkPolicy" and side in each["spec"]["policyTypes"]
        and matches(each["spec"]["podSelector"], pod.labels)
    ]  # fmt: skip
    key, peers = ("ingress", "from") if side == "Ingress" else ("egress", "to")
    rules = [rule for policy in policies for rule in policy.get(key, [])]
    return not policies or any(
        any(is_peer(peer, other) for peer in rule[peers])
        and port in [NAMED.get(each["port"], each["port"]) for each in rule["ports"]]
        for rule in rules
    )


def reaches(objects: Objects, source: Peer, target: Peer, port: int) -> bool:
    """Say whether a connection comes about: its source must be let out, and its target must let it in."""
    return passes(objects, "Egress", source, target, port) and passes(
        objects, "Ingress", target, source, port
    )


def test_nobody_reaches_anybody_but_who_must(objects: Objects, overlay: str) -> None:
    holds = {
        "all": True, "triton": overlay != "cpu", "object-store": overlay == "object-store",
    }  # fmt: skip
    expected = {
        (source, target, port)
        for source, a in PEERS.items() for target, b in PEERS.items()
        for port in (22, 53, 443, HTTP, GRPC, METRICS)
        if any((a, b, port) == entry[:3] and holds[entry[3]] for entry in ALLOWED)
    }  # fmt: skip
    # Traffic between others is not ours to rule.
    ours = {name for name, peer in PEERS.items() if peer.namespace == HERE and not peer.address}
    actual = {
        (source, target, port)
        for source, a in PEERS.items() for target, b in PEERS.items()
        for port in (22, 53, 443, HTTP, GRPC, METRICS)
        if {source, target} & ours and reaches(objects, a, b, port)
    }  # fmt: skip
    if overlay == "cpu":  # there is no Triton whose traffic could be meant
        assert not any("Triton" in entry for entry in actual)
    assert actual == expected


def test_triton_lets_in_only_who_must_whatever_they_are_let_out_to(
    objects: Objects, overlay: str
) -> None:
    """The policy on Triton alone, as if nobody else had one."""
    let_in = {
        (name, port)
        for name, peer in PEERS.items() for port in (22, 53, 443, HTTP, GRPC, METRICS)
        if passes(objects, "Ingress", TRITON, peer, port)
    }  # fmt: skip
    if overlay == "cpu":
        assert let_in == set()
    else:
        assert let_in == {("front end", GRPC), ("Prometheus", METRICS)}


@pytest.mark.parametrize("name", ["deny-all", "front-end"])
def test_without_one_policy_more_would_pass(objects: Objects, name: str) -> None:
    """The evaluation above notices when a policy is missing."""
    (policy,) = (
        e for e in objects if (e["kind"], e["metadata"]["name"]) == ("NetworkPolicy", name)
    )
    fewer = [each for each in objects if each is not policy]
    pod = NEIGHBOUR if name == "deny-all" else FRONT_END
    before, after = (reaches(some, INGRESS, pod, HTTP) for some in (objects, fewer))
    assert before != after


def test_named_ports_of_policies_are_those_of_the_pods(objects: Objects) -> None:
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            for container in each["spec"]["template"]["spec"]["containers"]:
                for port in container["ports"]:
                    assert NAMED[port["name"]] == port["containerPort"]
