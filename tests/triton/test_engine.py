"""The engine model on a real Triton: the contract's tensors, and the bytes of the embedded engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from cat_serve import __version__
from cat_serve.contract import Batch, Output
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact
from export.triton_server.server import TritonServer
from tests.triton_clients import (
    engine_columns,
    infer_together,
    parameters,
    statistics,
    statistics_after,
    tensors,
)

CLASSES, SEEDS, PSI = [0, 3, 9, 7], [0, 5, 2**32 - 1, 12], [1.0, 0.5, 0.0, 0.7]


@pytest.fixture
def batch() -> Batch:
    z = latents_from_seeds(SEEDS, (64,))
    return Batch(z, np.array(CLASSES, dtype=np.int64), np.array(PSI, dtype=np.float32))


def require_expected(answer: Any, expected: Output) -> None:
    assert answer.as_numpy("ok").tolist() == [[True]] * len(expected.images)
    np.testing.assert_array_equal(answer.as_numpy("images"), expected.images)


def test_grpc_gives_the_bytes_of_the_embedded_engine(
    client: grpc.InferenceServerClient, batch: Batch, expected: Callable[..., Output]
) -> None:
    answer = client.infer("fashion-32", tensors(grpc, engine_columns(batch)))
    require_expected(answer, expected(CLASSES, SEEDS, PSI))


@pytest.mark.anyio
async def test_asynchronous_grpc_gives_the_bytes_of_the_embedded_engine(
    triton_server: TritonServer, batch: Batch, expected: Callable[..., Output]
) -> None:
    async with grpc_aio.InferenceServerClient(triton_server.grpc_url) as client:
        answer = await client.infer("fashion-32", tensors(grpc_aio, engine_columns(batch)))
    require_expected(answer, expected(CLASSES, SEEDS, PSI))


def test_http_gives_the_bytes_of_the_embedded_engine(
    triton_server: TritonServer, batch: Batch, expected: Callable[..., Output]
) -> None:
    with http.InferenceServerClient(triton_server.http_url) as client:
        answer = client.infer("fashion-32", tensors(http, engine_columns(batch)))
    require_expected(answer, expected(CLASSES, SEEDS, PSI))


def test_half_precision_gives_the_bytes_of_the_embedded_engine_in_half(
    second_client: grpc.InferenceServerClient, batch: Batch, expected: Callable[..., Output]
) -> None:
    answer = second_client.infer("fashion-32", tensors(grpc, engine_columns(batch)))
    halves = expected(CLASSES, SEEDS, PSI, precision="fp16")
    require_expected(answer, halves)
    assert (halves.images != expected(CLASSES, SEEDS, PSI).images).any()  # they can be told apart


def test_a_row_out_of_range_is_not_ok_and_spoils_no_other(
    client: grpc.InferenceServerClient, batch: Batch, expected: Callable[..., Output]
) -> None:
    columns = engine_columns(batch) | {
        "class_id": np.array([0, 10, 9, -1]),
        "truncation_psi": np.array([1.0, 0.5, 0.0, 7.0], np.float32),
    }
    answer = client.infer("fashion-32", tensors(grpc, columns))
    assert answer.as_numpy("ok").tolist() == [[True], [False], [True], [False]]
    whole = expected(CLASSES, SEEDS, PSI)
    np.testing.assert_array_equal(answer.as_numpy("images")[[0, 2]], whole.images[[0, 2]])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("z", np.zeros((4, 63), np.float32)),
        ("class_id", np.zeros(4, np.float32)),
        ("truncation_psi", np.zeros((4, 2), np.float32)),
    ],
    ids=["shape of z", "dtype of class_id", "shape of truncation_psi"],
)
def test_wrong_shapes_and_dtypes_are_refused_by_triton(
    client: grpc.InferenceServerClient, batch: Batch, name: str, values: np.ndarray
) -> None:
    columns = engine_columns(batch) | {name: values}
    with pytest.raises(InferenceServerException, match=f"'{name}'") as refused:
        client.infer("fashion-32", tensors(grpc, columns))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_more_rows_than_the_model_takes_are_refused(client: grpc.InferenceServerClient) -> None:
    rows = Batch(np.zeros((65, 64), np.float32), np.zeros(65, np.int64), np.ones(65, np.float32))
    with pytest.raises(InferenceServerException, match="64"):
        client.infer("fashion-32", tensors(grpc, engine_columns(rows)))


def test_a_client_can_tell_which_artefact_is_served(
    client: grpc.InferenceServerClient,
    second_client: grpc.InferenceServerClient,
    shipped: Artefact,
) -> None:
    one, other = (parameters(each, "fashion-32") for each in (client, second_client))
    assert (one["version"], one["precision"]) == (shipped.version, "fp32")
    assert (other["version"], other["precision"]) == (shipped.version, "fp16")
    assert one["package_version"] == __version__


def test_a_request_that_the_engine_cannot_run_fails_alone(
    second_client: grpc.InferenceServerClient,
) -> None:
    """The graph of `stripes` fails for class 7; its server waits for rows, so that the three make one batch."""
    before = statistics(second_client, "stripes")
    answers = infer_together(
        second_client, [("stripes", engine_columns(stripes_row(each))) for each in (1, 7, 3)]
    )
    good, failed, also_good = answers
    assert statistics_after(second_client, "stripes", before, rows=2).executions == 1
    assert failed.status() == "StatusCode.INTERNAL"
    assert "ONNX Runtime failed on stripes" in failed.message()
    for answer in (good, also_good):
        assert answer.as_numpy("ok").all()
        assert answer.as_numpy("images").max() > 0


def stripes_row(class_id: int) -> Batch:
    return Batch(np.zeros((1, 6), np.float32), np.array([class_id]), np.ones(1, np.float32))
