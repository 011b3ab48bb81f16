"""The compose file: valid, linted, and true of the Dockerfile, the server and the Kubernetes manifests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cat_serve import __version__
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from tests.deploy.manifests import Objects

SERVICES = ("triton", "front-end")
each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.fixture(scope="module")
def file(project_root: Path) -> Path:
    return project_root / "deploy" / "compose.yaml"


@pytest.fixture(scope="module")
def compose(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment."""
    binary = Path(sys.executable).parent / command[0]
    return subprocess.run(
        [str(binary), *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )


def flags(script: str) -> list[str]:
    """Return the arguments of tritonserver in a shell script, without the place of the models."""
    found = re.findall(r"--[^\s\\]+", script)
    return sorted(flag for flag in found if not flag.startswith("--model-repository="))


def test_compose_would_take_it(file: Path, tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = tool(*check, str(file))
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(file.read_text(encoding="utf-8").replace("cap_drop", "cap_dorp"))
    done = tool(*check, str(wrong))
    assert done.returncode == 1
    assert "cap_dorp" in done.stdout


def test_linter_finds_nothing(file: Path, tmp_path: Path) -> None:
    lint = ("compose-lint", "check", "--fail-on", "low", "--strict-config")
    config = ("--config", str(file.with_name("compose-lint.yaml")))
    done = tool(*lint, *config, str(file))
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(file.read_text(encoding="utf-8").replace("read_only: true", ""))
    done = tool(*lint, *config, str(wrong))
    assert done.returncode == 1
    assert "CL-0007" in done.stdout


def test_images_are_built_from_stages_of_the_dockerfile(
    compose: dict[str, Any], file: Path, project_root: Path
) -> None:
    dockerfile = (project_root / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    for service in compose["services"].values():
        assert (file.parent / service["build"]["context"]).resolve() == project_root
        assert service["build"]["target"] in stages
        assert re.search(rf"cat-serve(-triton)?:{re.escape(__version__)}\b", service["image"])
    # What is said of the stock image must be the release that ours is made of.
    release = re.search(
        r"^FROM nvcr\.io/nvidia/(tritonserver:\S+) AS triton$", dockerfile, re.MULTILINE
    )
    assert release is not None
    assert release[1] in file.read_text(encoding="utf-8")
    assert release[1] in file.with_name("README.md").read_text(encoding="utf-8")


def test_image_of_the_front_end_holds_the_client_of_its_backend(
    compose: dict[str, Any], project_root: Path
) -> None:
    dockerfile = (project_root / "Dockerfile").read_text(encoding="utf-8")
    stage = dockerfile.partition(" AS serve\n")[2].partition("\nFROM ")[0]
    extras = re.search(r"whl\)\[([a-z,-]+)\]", stage)
    assert extras is not None
    backend = compose["services"]["front-end"]["environment"]["CAT_SERVE_BACKEND"]
    assert backend == "triton"
    assert backend in extras[1].split(",")


def test_triton_is_started_as_on_kubernetes(
    compose: dict[str, Any], rendered: Callable[[str], Objects]
) -> None:
    (stateful_set,) = (e for e in rendered("overlays/one-gpu") if e["kind"] == "StatefulSet")
    (there,) = stateful_set["spec"]["template"]["spec"]["containers"]
    here = compose["services"]["triton"]
    assert here["entrypoint"] == there["command"]
    (script,) = here["command"]
    assert flags(script.replace("$$", "$")) == flags(there["args"][0])
    assert len(flags(script)) >= 9
    before = [text.replace("$$", "$").partition("exec ")[0] for text in (script, there["args"][0])]
    assert before[0] == before[1]
    variables = {each["name"]: each["value"] for each in there["env"]}
    assert variables.pop("MODEL_REPOSITORY") == "/models"
    assert here["environment"] == variables
    assert there["readinessProbe"]["httpGet"]["path"] in here["healthcheck"]["test"][-1]


def test_triton_can_be_reached_by_the_front_end_alone(compose: dict[str, Any]) -> None:
    triton, front_end = (compose["services"][name] for name in SERVICES)
    assert compose["networks"]["engine"] == {"internal": True}
    assert triton["networks"] == ["engine"]
    assert "ports" not in triton
    assert "engine" in front_end["networks"]
    assert front_end["ports"] == ["${BIND_ADDRESS:-127.0.0.1}:8000:8000"]


@each_service
def test_containers_have_no_right_that_they_do_not_need(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    user, _, group = service["user"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys() == set()
    assert all(volume["read_only"] is True for volume in service["volumes"])
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()


def test_triton_gets_one_gpu(compose: dict[str, Any]) -> None:
    devices = compose["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "reservations" not in compose["services"]["front-end"]["deploy"]["resources"]


def test_front_end_starts_with_settings_that_it_takes(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose["services"]["front-end"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
        if name != "HOME":
            assert name.removeprefix("CAT_SERVE_").lower() in Settings.model_fields
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert service["ports"][0].endswith(f":{settings.port}")
    assert settings.triton_url == ("triton:8001",)
    assert str(settings.model_repository) == service["volumes"][0]["target"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= (
        settings.shutdown_delay_s + settings.shutdown_grace_s + 10
    )


def test_front_end_is_healthy_when_the_app_says_it_is_ready(compose: dict[str, Any]) -> None:
    service = compose["services"]["front-end"]
    address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", service["healthcheck"]["test"][-1])
    assert address is not None
    assert address[1] == service["environment"]["CAT_SERVE_PORT"]
    assert "get" in create_app(Settings()).openapi()["paths"][address[2]]
    assert address[2] == "/readyz"
    assert service["depends_on"] == {"triton": {"condition": "service_healthy"}}


def test_both_read_the_same_models_by_default_those_that_ship(
    compose: dict[str, Any], file: Path, project_root: Path
) -> None:
    volumes = [compose["services"][name]["volumes"] for name in SERVICES]
    assert volumes[0] == volumes[1]
    default = re.fullmatch(r"\$\{MODEL_REPOSITORY:-(.+)\}", volumes[0][0]["source"])
    assert default is not None
    assert (file.parent / default[1]).resolve() == project_root / "model_repository"
    (script,) = compose["services"]["triton"]["command"]
    assert f"--model-repository={volumes[0][0]['target']} " in script
