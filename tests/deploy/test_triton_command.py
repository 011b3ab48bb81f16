"""The command with which Triton is deployed, run as it stands with a real server: what answers, what does not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from export.triton_server.installation import find_installation
from export.triton_server.server import Ports
from tests.deploy.manifests import Objects
from tests.triton_servers import copy_repository

LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
REGIONS = f"deployed-{os.getpid()}-"


def container(objects: Objects) -> dict[str, Any]:
    """Return Triton's container."""
    (found,) = (each for each in objects if each["kind"] == "StatefulSet")
    (only,) = found["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.fixture(scope="module")
def deployed(
    rendered: Callable[[str], Objects], project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ports]:
    """Run the deployed command; `tritonserver` on its PATH adds ports, loopback and this server's folders."""
    folder, installation, ports = (
        tmp_path_factory.mktemp("deployed"),
        find_installation(),
        Ports.free(),
    )
    added = [
        *installation.arguments,
        *(f"--{each}-address={LOOPBACK}" for each in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}",
    ]  # fmt: skip
    wrapper = folder / "bin" / "tritonserver"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {installation.binary} "$@" {shlex.join(added)}\n')
    wrapper.chmod(0o755)
    environment = os.environ | installation.environment
    environment["PATH"] = f"{wrapper.parent}{os.pathsep}{environment['PATH']}"
    environment["MODEL_REPOSITORY"] = str(
        copy_repository(project_root / "model_repository", folder / "models")
    )
    environment["REGIONS"] = REGIONS
    spec = container(rendered("overlays/one-gpu"))
    (SHARED_MEMORY / f"{REGIONS}left").touch()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*spec["command"], *spec["args"]], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while status(ports.http, spec["startupProbe"]["httpGet"]["path"]) != 200:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield ports
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for region in SHARED_MEMORY.glob(f"{REGIONS}*"):
            region.unlink()


def status(port: int, path: str, body: bytes | None = None) -> int:
    """Return the status of an answer, 0 if there is none."""
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}", data=body)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@pytest.fixture
def client(deployed: Ports) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(f"{LOOPBACK}:{deployed.grpc}") as connected:
        yield connected


def infer(client: grpc.InferenceServerClient) -> np.ndarray:
    """Ask the shipped model for one image."""
    inputs = []
    for name, dtype, values in (
        ("z", "FP32", np.zeros((1, 64), np.float32)),
        ("class_id", "INT64", np.zeros((1, 1), np.int64)),
        ("truncation_psi", "FP32", np.ones((1, 1), np.float32)),
    ):
        inputs.append(grpc.InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values)
    images = client.infer("fashion-32", inputs).as_numpy("images")
    assert images is not None
    return images


def test_probes_ask_what_the_server_answers(
    deployed: Ports, rendered: Callable[[str], Objects]
) -> None:
    spec = container(rendered("overlays/one-gpu"))
    asked = {kind: spec[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {each["port"] for each in asked.values()} == {"http"}
    assert [status(deployed.http, each["path"]) for each in asked.values()] == [200, 200, 200]


def test_shared_memory_of_a_killed_triton_is_removed_and_only_that(deployed: Ports) -> None:
    regions = [path.name for path in SHARED_MEMORY.glob(f"{REGIONS}*")]
    assert f"{REGIONS}left" not in regions
    assert regions, "this server's own"


def test_front_ends_get_images_over_grpc(client: grpc.InferenceServerClient) -> None:
    assert client.is_server_ready()
    assert client.is_model_ready("fashion-32")
    assert client.get_model_metadata("fashion-32").name == "fashion-32"
    assert infer(client).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2", None),
        ("/v2/models/fashion-32", None),
        ("/v2/models/fashion-32/config", None),
        ("/v2/models/fashion-32/stats", None),
        ("/v2/models/fashion-32/infer", b"{}"),
        ("/v2/repository/index", b"{}"),
        ("/v2/repository/models/fashion-32/unload", b"{}"),
        ("/v2/systemsharedmemory/status", None),
        ("/v2/systemsharedmemory/region/a/register", b'{"key": "/a", "byte_size": 1}'),
        ("/v2/cudasharedmemory/status", None),
        ("/v2/trace/setting", None),
        ("/v2/logging", None),
    ],
)
def test_http_answers_probes_alone(deployed: Ports, path: str, body: bytes | None) -> None:
    assert status(deployed.http, path, body) == 403


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("a", "/a", 1),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("fashion-32"),
        lambda client: client.unload_model("fashion-32"),
        lambda client: client.get_trace_settings(),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
    ],
)
def test_grpc_keeps_memory_and_models_to_itself(
    client: grpc.InferenceServerClient, ask: Callable[[grpc.InferenceServerClient], object]
) -> None:
    with pytest.raises(InferenceServerException, match="triton-grpc-protocol-locked"):
        ask(client)
    assert client.is_model_ready("fashion-32")


def test_the_key_is_drawn_anew_and_written_nowhere(rendered: Callable[[str], Objects]) -> None:
    (script,) = container(rendered("overlays/one-gpu"))["args"]
    drawing = script.splitlines()[0]
    keys = {
        subprocess.run(
            ["/bin/sh", "-ec", f"{drawing}\necho $key"], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(keys) == 2
    assert all(re.fullmatch(r"[0-9a-f-]{36}\n", key) for key in keys)
    assert script.count("locked=$key") == 2


def test_autoscaler_asks_for_what_the_adapter_makes_of_what_triton_counts(
    deployed: Ports, client: grpc.InferenceServerClient,
    rendered: Callable[[str], Objects], adapter_rule: dict[str, Any],
) -> None:  # fmt: skip
    objects = rendered("overlays/many-gpu")
    (scaler,) = (
        e
        for e in objects
        if e["kind"] == "HorizontalPodAutoscaler" and e["metadata"]["name"] == "triton"
    )
    (metric,) = scaler["spec"]["metrics"]
    series = re.match(r"\w+", adapter_rule["seriesQuery"])
    assert series is not None
    made = re.sub(adapter_rule["name"]["matches"], adapter_rule["name"]["as"], series[0])
    assert metric["pods"]["metric"]["name"] == made
    infer(client)
    with urllib.request.urlopen(
        f"http://{LOOPBACK}:{deployed.metrics}/metrics", timeout=5
    ) as answer:
        counted = set(re.findall(r'^(\w+)\{[^}]*model="fashion-32"', answer.read().decode(), re.M))
    used = set(re.findall(r"\bnv_\w+", adapter_rule["metricsQuery"]))
    assert used == {"nv_inference_queue_duration_us", "nv_inference_request_success"}
    assert used <= counted


def test_front_end_as_deployed_serves_while_most_tritons_do_not_exist(
    deployed: Ports, rendered: Callable[[str], Objects], project_root: Path, tmp_path: Path
) -> None:
    """Its environment is that of the overlay; only addresses of the cluster become those of this machine."""
    (front_end,) = (e for e in rendered("overlays/many-gpu") if e["kind"] == "Deployment")
    (spec,) = front_end["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in spec["env"]}
    _, *absent = json.loads(given["CAT_SERVE_TRITON_URL"])
    assert len(absent) == 7
    port = Ports.free().http
    environment = os.environ | given | {
        "HOME": str(tmp_path),
        "CAT_SERVE_HOST": LOOPBACK,
        "CAT_SERVE_PORT": str(port),
        "CAT_SERVE_MODEL_REPOSITORY": str(project_root / "model_repository"),
        "CAT_SERVE_TRITON_URL": json.dumps([f"{LOOPBACK}:{deployed.grpc}", *absent]),
        "CAT_SERVE_SHUTDOWN_DELAY_S": "0",
    }  # fmt: skip
    program, *arguments = spec["args"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments],
            env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while status(port, spec["readinessProbe"]["httpGet"]["path"]) != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert status(port, spec["livenessProbe"]["httpGet"]["path"]) == 200
        assert [status(port, f"/generate?class=3&seed={seed}", b"") for seed in range(8)] == [
            200
        ] * 8
    finally:
        process.terminate()
        try:
            code = process.wait(int(given["CAT_SERVE_SHUTDOWN_GRACE_S"]) + 10)
        finally:
            process.kill()
    assert code == 0, log.read_text()
