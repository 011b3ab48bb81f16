"""The rendered manifests: valid for the API, and true of each other."""

from __future__ import annotations

import copy
from collections.abc import Callable

import kubernetes_validate
import pytest

from tests.deploy.manifests import (
    WITH_TRITON,
    Objects,
    containers,
    matches,
    of_kind,
    pods,
    ports,
    selectors,
)

API_VERSION = "1.37"


# --- the API ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", [*(f"overlays/{name}" for name in ("cpu", *WITH_TRITON)), "loader"]
)
def test_every_object_is_one_that_the_api_takes(
    rendered: Callable[[str], Objects], folder: str
) -> None:
    objects = rendered(folder)
    assert objects
    for each in objects:
        kubernetes_validate.validate(each, API_VERSION, strict=True)


def test_an_unknown_or_misplaced_field_is_refused(rendered: Callable[[str], Objects]) -> None:
    pod = copy.deepcopy(of_kind(rendered("loader"), "Pod")["loader"])
    pod["spec"]["readOnlyRootFilesystem"] = True  # belongs to a container
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFilesystem"):
        kubernetes_validate.validate(pod, API_VERSION, strict=True)


def test_every_overlay_is_known_here(overlay: str) -> None:
    assert overlay in {"cpu", *WITH_TRITON}


def test_everything_is_in_one_namespace_with_the_strictest_pod_standard(objects: Objects) -> None:
    (namespace,) = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    elsewhere = [
        each["metadata"]["name"] for each in objects
        if each is not namespace and each["metadata"].get("namespace") != namespace["metadata"]["name"]
    ]  # fmt: skip
    assert elsewhere == []


def test_no_two_objects_have_one_name(objects: Objects) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


# --- true of each other ----------------------------------------------------------------------


def test_every_selector_selects_a_pod(objects: Objects) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    found = list(selectors(objects))
    assert len(found) >= 7
    assert [name for name, each in found if not any(matches(each, one) for one in labels)] == []


def test_services_and_budgets_select_one_workload_each(objects: Objects) -> None:
    for name, selector in selectors(objects):
        if name.startswith(("Service", "PodDisruptionBudget")):
            selected = [
                workload for workload, pod in pods(objects).items()
                if matches(selector, pod["metadata"]["labels"])
            ]  # fmt: skip
            assert len(selected) == 1, name


def test_services_lead_to_ports_that_exist(objects: Objects) -> None:
    for service in of_kind(objects, "Service").values():
        selector = {"matchLabels": service["spec"]["selector"]}
        (pod,) = (p for p in pods(objects).values() if matches(selector, p["metadata"]["labels"]))
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(pod)


def test_ingress_leads_to_the_front_end(objects: Objects) -> None:
    (ingress,) = of_kind(objects, "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    backend = path["backend"]["service"]
    service = of_kind(objects, "Service")[backend["name"]]
    assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert (
        service["spec"]["selector"].items()
        <= pods(objects)["front-end"]["metadata"]["labels"].items()
    )
    assert rule["host"] in ingress["spec"]["tls"][0]["hosts"]


def test_what_pods_refer_to_is_there(objects: Objects) -> None:
    for pod in pods(objects).values():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in of_kind(objects, "ServiceAccount")
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in of_kind(objects, "PersistentVolumeClaim")
            if secret := volume.get("secret"):
                assert secret["optional"], "the secret is the operator's"
        for each in containers(pod):
            mounted = {mount["name"] for mount in each["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]}
            for source in each.get("envFrom", []):
                assert source["configMapRef"]["name"] in of_kind(objects, "ConfigMap")


def test_autoscalers_scale_what_exists_and_own_its_number(objects: Objects) -> None:
    scalers = of_kind(objects, "HorizontalPodAutoscaler")
    assert "front-end" in scalers
    for scaler in scalers.values():
        target = scaler["spec"]["scaleTargetRef"]
        workload = of_kind(objects, target["kind"])[target["name"]]
        assert "replicas" not in workload["spec"]
        assert scaler["spec"]["minReplicas"] >= 2, "a single pod is down whenever it is replaced"


def test_budgets_cover_every_workload_and_let_a_node_be_drained(objects: Objects) -> None:
    budgets = of_kind(objects, "PodDisruptionBudget").values()
    for pod in pods(objects).values():
        labels = pod["metadata"]["labels"]
        assert len([b for b in budgets if matches(b["spec"]["selector"], labels)]) == 1
    assert all(budget["spec"]["maxUnavailable"] in (1, "25%") for budget in budgets)
