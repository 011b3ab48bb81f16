"""deploy/README.md names what exists, and an overlay of one's own works as it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import Objects


@pytest.fixture(scope="module")
def readme(project_root: Path) -> str:
    return (project_root / "deploy" / "README.md").read_text(encoding="utf-8")


def commands(readme: str) -> list[list[str]]:
    """Return the words of every command in a shell block."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_links_and_files_that_are_named_exist(readme: str, project_root: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 10
    assert [link for link in links if not (project_root / "deploy" / link).exists()] == []
    named = [word for words in commands(readme) for word in words if word.startswith("deploy/")]
    assert len(named) >= 6
    assert [path for path in named if not (project_root / path).exists()] == []


def test_every_overlay_is_described(readme: str, project_root: Path) -> None:
    overlays = {path.name for path in (project_root / "deploy" / "k8s" / "overlays").iterdir()}
    assert set(re.findall(r"^\| \[k8s/overlays/([a-z-]+)\]", readme, re.MULTILINE)) == overlays


def test_images_are_built_under_the_names_that_the_overlays_use(
    readme: str, rendered: Callable[[str], Objects]
) -> None:
    built = {value(words, "-t") for words in commands(readme) if words[:2] == ["docker", "build"]}
    used = {
        container["image"]
        for each in rendered("overlays/many-gpu") if "template" in each.get("spec", {})
        for container in each["spec"]["template"]["spec"]["containers"]
    }  # fmt: skip
    assert built == used


def test_objects_that_commands_name_exist(readme: str, rendered: Callable[[str], Objects]) -> None:
    objects = rendered("overlays/many-gpu") + rendered("loader")
    known = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects}
    named = re.findall(r"\b(?:statefulset|deployment|pod)/[a-z-]+", readme)
    assert {"statefulset/triton", "deployment/front-end", "pod/loader"} == set(named)
    assert set(named) <= known
    (secret,) = (words for words in commands(readme) if "secret" in words)
    name, _, path = next(
        (v["secret"]["secretName"], *p.rpartition("/")[1:])
        for each in rendered("overlays/object-store") if each["kind"] == "StatefulSet"
        for v in each["spec"]["template"]["spec"]["volumes"] if "secret" in v
        for c in rendered("overlays/object-store") if c["kind"] == "ConfigMap"
        for p in [c["data"]["AWS_SHARED_CREDENTIALS_FILE"]]
    )  # fmt: skip
    assert name in secret
    assert f"--from-file={path}" in secret


def test_metrics_are_asked_for_by_their_name(readme: str, adapter_rule: dict[str, Any]) -> None:
    assert f"pods/*/{adapter_rule['name']['as']}`" in readme


def test_policies_are_opened_with_the_labels_that_they_look_for(
    readme: str, rendered: Callable[[str], Objects]
) -> None:
    policies = [e for e in rendered("overlays/many-gpu") if e["kind"] == "NetworkPolicy"]
    wanted = {
        peer["namespaceSelector"]["matchLabels"]["cat-serve/role"]
        for policy in policies for rule in policy["spec"].get("ingress", []) for peer in rule["from"]
        if "namespaceSelector" in peer
    }  # fmt: skip
    given = {
        words[-1] for words in commands(readme) if words[:3] == ["kubectl", "label", "namespace"]
    }
    assert given == {f"cat-serve/role={role}" for role in wanted} != set()


def test_an_overlay_of_ones_own_changes_what_is_a_placeholder(
    tmp_path: Path, project_root: Path, rendered: Callable[[str], Objects]
) -> None:
    """Host, registry, digest, bucket and node pool, without an edit to the files here."""
    copied = tmp_path / "k8s"
    copied.symlink_to(project_root / "deploy" / "k8s")  # kustomize wants relative resources
    own = tmp_path / "own"
    own.mkdir()
    digest = "sha256:" + "0" * 64
    pool = [{"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {"pool": "gpu"}}]
    hosts = [
        {"op": "replace", "path": path, "value": "cat.example.org"}
        for path in ("/spec/rules/0/host", "/spec/tls/0/hosts/0")
    ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "cat-serve",
        "resources": ["../k8s/overlays/object-store"],
        "images": [{"name": "registry.example.com/cat-serve", "newName": "r.example.org/cat", "digest": digest}],
        "configMapGenerator": [
            {"name": "object-store", "behavior": "merge", "literals": ["MODEL_REPOSITORY=s3://mine/models"]}
        ],
        "patches": [
            {"target": {"kind": "StatefulSet"}, "patch": yaml.safe_dump(pool)},
            {"target": {"kind": "Ingress"}, "patch": yaml.safe_dump(hosts)},
        ],
    }  # fmt: skip
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = {(e["kind"], e["metadata"]["name"].rpartition("-")[0] if e["kind"] == "ConfigMap" else e["metadata"]["name"]): e
               for e in rendered(str(own))}  # fmt: skip
    front_end = objects["Deployment", "front-end"]["spec"]["template"]["spec"]
    assert front_end["containers"][0]["image"] == f"r.example.org/cat@{digest}"
    store = objects["ConfigMap", "object-store"]
    assert store["data"]["MODEL_REPOSITORY"] == "s3://mine/models"
    assert store["data"]["AWS_REGION"], "merged, not replaced"
    triton = objects["StatefulSet", "triton"]["spec"]["template"]["spec"]
    assert triton["nodeSelector"] == {"pool": "gpu"}
    named = triton["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    assert named == store["metadata"]["name"]
    assert objects["Ingress", "cat-serve"]["spec"]["rules"][0]["host"] == "cat.example.org"
