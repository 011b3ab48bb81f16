"""The pods of the manifests: true of the server, and with no right and no GPU too many."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from cat_serve import __version__
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from tests.deploy.manifests import (
    WITH_TRITON,
    Objects,
    containers,
    environment,
    matches,
    of_kind,
    pods,
    ports,
    setting,
    with_triton,
)

OURS = ("cat-serve", "cat-serve-triton")


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
