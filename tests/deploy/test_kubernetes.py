"""The rendered manifests: valid for the API, and true of each other and of the server."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest

from cat_serve import __version__
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

Objects = list[dict[str, Any]]
API_VERSION = "1.37"
WITH_TRITON = {"one-gpu": 1, "many-gpu": 8, "object-store": 8}
OURS = ("cat-serve", "cat-serve-triton")


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


# --- true of the server ----------------------------------------------------------------------


def test_front_end_is_probed_at_routes_of_the_app(objects: Objects) -> None:
    (container,) = pods(objects)["front-end"]["spec"]["containers"]
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
    }
    routes = create_app(Settings()).openapi()["paths"]
    assert all("get" in routes[probe["path"]] for probe in probes.values())
    # Readiness alone may depend on the engine: a front end that waits for it must not be restarted.
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz",
    }  # fmt: skip
    assert all(probe["port"] in ports(pods(objects)["front-end"]) for probe in probes.values())


def test_variables_are_settings_with_values_that_they_take(
    objects: Objects, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pods(objects)["front-end"]
    names = [name.removeprefix("CAT_SERVE_").lower() for name in environment(pod) if name != "HOME"]
    assert set(names) <= set(Settings.model_fields)
    for name, value in environment(pod).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert settings.port == ports(pod)["http"]
    assert settings.backend == ("triton" if with_triton(objects, overlay) else "onnxruntime")
    # Otherwise the service `cat-serve` would set CAT_SERVE_PORT to an address.
    assert pod["spec"]["enableServiceLinks"] is False


def test_pods_are_given_longer_to_leave_than_they_take(objects: Objects, overlay: str) -> None:
    pod = pods(objects)["front-end"]
    delay_s = setting(pod, "shutdown_delay_s")
    assert delay_s >= 5, "proxies need time to see that /readyz says 503"
    drain_s = delay_s + setting(pod, "shutdown_grace_s")
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_s + 10
    if with_triton(objects, overlay):
        triton = pods(objects)["triton"]["spec"]
        exit_s = re.search(r"--exit-timeout-secs=(\d+)", triton["containers"][0]["args"][0])
        assert exit_s is not None
        assert triton["terminationGracePeriodSeconds"] >= int(exit_s[1]) + 10


def test_models_are_where_the_server_looks_and_cannot_be_changed(objects: Objects) -> None:
    for name, pod in pods(objects).items():
        (container,) = pod["spec"]["containers"]
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        variable = "CAT_SERVE_MODEL_REPOSITORY" if name == "front-end" else "MODEL_REPOSITORY"
        path = environment(pod).get(variable)
        if path is None:  # Triton reads the store itself
            assert of_kind(objects, "PersistentVolumeClaim") == {}
            (store,) = of_kind(objects, "ConfigMap").values()
            assert store["data"][variable].startswith("s3://")
            assert container["envFrom"] == [{"configMapRef": {"name": store["metadata"]["name"]}}]
        else:
            assert mounts[path]["readOnly"] is True


def test_front_end_gets_a_copy_of_the_store_before_it_starts(
    rendered: Callable[[str], Objects],
) -> None:
    objects = rendered("overlays/object-store")
    spec = pods(objects)["front-end"]["spec"]
    (copying,) = spec["initContainers"]
    (serving,) = spec["containers"]
    written = {m["mountPath"]: m["name"] for m in copying["volumeMounts"] if not m.get("readOnly")}
    read = {m["mountPath"]: m["name"] for m in serving["volumeMounts"]}
    assert written["/models"] == read["/models"]
    (volume,) = (v for v in spec["volumes"] if v["name"] == read["/models"])
    assert volume.keys() == {"name", "emptyDir"}
    assert 'aws s3 sync --only-show-errors "$MODEL_REPOSITORY" /models' in copying["command"][-1]
    assert copying["envFrom"] == pods(objects)["triton"]["spec"]["containers"][0]["envFrom"]


# --- security and resources ------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", [*(f"overlays/{name}" for name in ("cpu", *WITH_TRITON)), "loader"]
)
def test_no_container_has_a_right_that_it_does_not_need(
    rendered: Callable[[str], Objects], folder: str
) -> None:
    for pod in pods(rendered(folder)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert {"hostNetwork", "hostPID", "hostIPC"} & spec.keys() == set()
        assert not any("hostPath" in volume for volume in spec["volumes"])
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] >= 10_000  # no account of the node
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers(pod):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_every_container_says_what_it_needs_and_may_take(objects: Objects) -> None:
    for pod in pods(objects).values():
        for each in containers(pod):
            assert {"cpu", "memory"} <= each["resources"]["requests"].keys()
            assert {"cpu", "memory"} <= each["resources"]["limits"].keys()


def test_each_triton_has_one_gpu_and_nothing_else_has_any(objects: Objects, overlay: str) -> None:
    gpus = {
        name: [each["resources"]["limits"].get("nvidia.com/gpu") for each in containers(pod)]
        for name, pod in pods(objects).items()
    }
    assert set(gpus.pop("front-end")) == {None}
    assert gpus == ({"triton": ["1"]} if with_triton(objects, overlay) else {})


def test_pods_are_spread_over_zones_and_nodes(objects: Objects) -> None:
    for pod in pods(objects).values():
        keys = [each["topologyKey"] for each in pod["spec"]["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for each in pod["spec"]["topologySpreadConstraints"]:
            assert matches(each["labelSelector"], pod["metadata"]["labels"])


def test_images_have_versions_and_ours_have_this_one(objects: Objects) -> None:
    for pod in pods(objects).values():
        for each in containers(pod):
            name, _, tag = each["image"].rpartition(":")
            assert re.fullmatch(r"\d+\.\d+\.\d+", tag), each["image"]
            if name.rpartition("/")[2] in OURS:
                assert tag == __version__


# --- many Tritons ----------------------------------------------------------------------------


@pytest.mark.parametrize(("overlay", "most"), WITH_TRITON.items(), indirect=["overlay"])
def test_front_end_names_every_triton_there_may_be(objects: Objects, most: int) -> None:
    stateful_set = of_kind(objects, "StatefulSet")["triton"]
    scaler = of_kind(objects, "HorizontalPodAutoscaler").get("triton")
    assert (scaler["spec"]["maxReplicas"] if scaler else stateful_set["spec"]["replicas"]) == most
    service = of_kind(objects, "Service")[stateful_set["spec"]["serviceName"]]
    assert service["spec"]["clusterIP"] == "None", "only a headless service names its pods"
    port = ports(pods(objects)["triton"])["grpc"]
    pod = pods(objects)["front-end"]
    assert json.loads(environment(pod)["CAT_SERVE_TRITON_URL"]) == [
        f"triton-{number}.{service['metadata']['name']}:{port}" for number in range(most)
    ]
    # A batch that computes and one that waits for each GPU; else nothing waits where the autoscaler looks.
    fewest = of_kind(objects, "HorizontalPodAutoscaler")["front-end"]["spec"]["minReplicas"]
    assert fewest * setting(pod, "triton_concurrency") >= 2 * most * setting(pod, "max_batch")
