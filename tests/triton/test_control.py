"""What an operator sees and does: warm-up, metrics, loading and unloading, closed interfaces, artefacts refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from cat_serve.contract import Batch
from cat_serve.errors import BackendUnavailable
from export.triton import __main__ as triton
from export.triton_server.installation import find_installation
from export.triton_server.server import Ports, TritonServer
from tests.triton_clients import engine_columns, statistics, statistics_after, tensors

START_SECONDS = 120


def metric(server: TritonServer, name: str, model: str) -> float:
    """Return a counter of a model."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf'^{name}{{model="{model}",version="1"}} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def test_metrics_count_images(
    triton_server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    counted = statistics(client, "fashion-32")
    before = metric(triton_server, "nv_inference_count", "fashion-32")
    client.infer("cat", tensors(grpc, {"class_id": [1, 2, 3], "seed": [1, 2, 3]}))
    statistics_after(client, "fashion-32", counted, rows=3)
    assert metric(triton_server, "nv_inference_count", "fashion-32") == before + 3


def test_every_configured_batch_size_was_warmed_up(
    second_client: grpc.InferenceServerClient,
) -> None:
    """`stripes` is configured for 1 and 3; only a model that was just loaded has no other batches."""
    second_client.unload_model("stripes")
    second_client.load_model("stripes")
    (found,) = second_client.get_inference_statistics("stripes").model_stats
    assert {each.batch_size: each.compute_infer.count for each in found.batch_stats} == {1: 1, 3: 1}


def test_a_model_can_be_unloaded_and_loaded_where_that_is_allowed(
    second_client: grpc.InferenceServerClient,
) -> None:
    rows = Batch(np.zeros((1, 6), np.float32), np.array([1]), np.ones(1, np.float32))
    asked = tensors(grpc, engine_columns(rows))
    first = second_client.infer("stripes", asked).as_numpy("images")
    second_client.unload_model("stripes")
    assert not second_client.is_model_ready("stripes")
    with pytest.raises(InferenceServerException) as refused:
        second_client.infer("cat", tensors(grpc, {"model": ["stripes"], "class_id": [1]}))
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    second_client.load_model("stripes")
    np.testing.assert_array_equal(second_client.infer("stripes", asked).as_numpy("images"), first)


def test_a_server_of_fixed_models_takes_no_control_and_no_shared_memory(
    triton_server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "repository": client.get_model_repository_index,
        "unload": lambda: client.unload_model("fashion-32"),
        "shared memory": lambda: client.register_system_shared_memory("probe", "/probe", 64),
        "logging": lambda: client.update_log_settings({"log_verbose_level": 1}),
        "trace": lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}),
    }
    for name, call in calls.items():
        with pytest.raises(InferenceServerException, match="restricted") as refused:
            call()
        assert refused.value.status() == "StatusCode.UNAVAILABLE", name
    with (
        http.InferenceServerClient(triton_server.http_url) as over_http,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        over_http.register_system_shared_memory("probe", "/probe", 64)
    assert client.is_model_ready("fashion-32")


# --- artefacts that do not fit ---------------------------------------------------------------


def load_error(client: grpc.InferenceServerClient, model: str) -> str:
    with pytest.raises(InferenceServerException) as refused:
        client.load_model(model)
    return str(refused.value.message())


@pytest.fixture
def broken(second_repository: Path) -> Iterator[Path]:
    """A copy of `stripes` in the second repository under another name, to be spoiled."""
    folder = second_repository / "broken"
    shutil.copytree(second_repository / "stripes", folder)
    manifest = folder / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"stripes"', '"broken"', 1))
    assert triton.main([str(second_repository), "--model", "broken", "--warm-up", "0"]) == 0
    yield folder
    shutil.rmtree(folder)


def test_an_artefact_that_was_changed_is_refused_and_others_are_served(
    second_client: grpc.InferenceServerClient, broken: Path
) -> None:
    graph = broken / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert "model.onnx of model 'broken' is not the file" in load_error(second_client, "broken")
    assert second_client.is_model_ready("stripes")


def test_a_configuration_of_another_version_is_refused(
    second_client: grpc.InferenceServerClient, broken: Path
) -> None:
    manifest = broken / "1" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["source"] = {"seed": 1}
    manifest.write_text(json.dumps(values))
    said = load_error(second_client, "broken")
    assert "was written for version" in said
    assert "python -m export.triton" in said


def test_an_engine_that_does_not_make_its_golden_images_is_refused(
    second_client: grpc.InferenceServerClient, broken: Path, second_repository: Path
) -> None:
    manifest = broken / "1" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["golden"]["class_id"] = [0]  # the file has class 1
    manifest.write_text(json.dumps(values))
    assert triton.main([str(second_repository), "--model", "broken", "--warm-up", "0"]) == 0
    assert "does not make its golden" in load_error(second_client, "broken")


def test_a_python_with_numpy_2_is_refused_because_tensors_would_be_corrupted(
    project_root: Path, tmp_path: Path
) -> None:
    """The environment of the tests has numpy 2; this server would read zeros from every tensor."""
    assert int(np.__version__.partition(".")[0]) >= 2
    installation = find_installation()
    path = f"{Path(sys.executable).parent}:{installation.environment['PATH']}"
    installation.environment["PATH"] = path
    log = tmp_path / "server.log"
    repository = project_root / "model_repository"
    with (
        log.open("wb") as stream,
        TritonServer(repository, installation, Ports.free(), log=stream) as server,
        pytest.raises(BackendUnavailable, match="ended with 1"),
    ):
        server.wait_ready(START_SECONDS)
    said = log.read_text()
    assert f"corrupts the tensors of numpy {np.__version__}" in said
    assert "pip install 'numpy<2'" in said
