"""Batches across requests, a queue that says no, and many clients at once, on a real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from cat_serve.contract import Batch, Output
from cat_serve.latents import latents_from_seeds
from export.triton_server.server import TritonServer
from tests.triton_clients import (
    engine_columns,
    infer_together,
    statistics,
    statistics_after,
    tensors,
)

Expected = Callable[..., Output]
Answers = Sequence[Any]


def rows(seed: int, count: int) -> dict[str, Any]:
    """Return a request for `count` images of class seed % 10."""
    z = latents_from_seeds(range(seed, seed + count), (64,))
    return engine_columns(Batch(z, np.full(count, seed % 10, np.int64), np.ones(count, np.float32)))


def split(answers: Answers) -> tuple[dict[int, Any], list[InferenceServerException]]:
    """Return the answers by their place, and the errors."""
    refused = [each for each in answers if isinstance(each, InferenceServerException)]
    given = {i: a for i, a in enumerate(answers) if not isinstance(a, InferenceServerException)}
    return given, refused


def test_requests_are_answered_in_fewer_batches_than_there_are(
    client: grpc.InferenceServerClient, expected: Expected
) -> None:
    before = statistics(client, "fashion-32")
    answers = infer_together(client, [("fashion-32", rows(seed, 1)) for seed in range(24)])
    assert statistics_after(client, "fashion-32", before, rows=24).executions < 24 / 2
    images = np.concatenate([answer.as_numpy("images") for answer in answers])
    classes = [seed % 10 for seed in range(24)]
    np.testing.assert_array_equal(images, expected(classes, list(range(24))).images)


def test_requests_of_the_friendly_model_meet_in_the_batches_of_the_engine(
    client: grpc.InferenceServerClient,
) -> None:
    before = statistics(client, "fashion-32")
    requests = [("cat", {"class_id": [seed % 10], "seed": [seed]}) for seed in range(24)]
    infer_together(client, requests, outputs=[grpc.InferRequestedOutput("image")])
    assert statistics_after(client, "fashion-32", before, rows=24).executions < 24 / 2


def test_every_one_of_many_clients_gets_its_own_images(
    triton_server: TritonServer, expected: Expected
) -> None:
    clients, requests_each = 10, 3

    def ask(number: int) -> np.ndarray:
        images = []
        with grpc.InferenceServerClient(triton_server.grpc_url) as client:
            for i in range(requests_each):
                columns = {"class_": [str(number % 10)], "seed": [1000 * number + i]}
                images.append(client.infer("cat", tensors(grpc, columns)).as_numpy("image"))
        return np.concatenate(images)

    with ThreadPoolExecutor(clients) as pool:
        got = np.concatenate(list(pool.map(ask, range(clients))))
    classes = [number % 10 for number in range(clients) for _ in range(requests_each)]
    seeds = [1000 * number + i for number in range(clients) for i in range(requests_each)]
    np.testing.assert_array_equal(got, expected(classes, seeds).images)


@pytest.mark.anyio
async def test_one_asynchronous_client_gets_every_image_right(
    triton_server: TritonServer, expected: Expected
) -> None:
    async with grpc_aio.InferenceServerClient(triton_server.grpc_url) as client:
        calls = [client.infer("fashion-32", tensors(grpc_aio, rows(s, 2))) for s in range(16)]
        answers = await asyncio.gather(*calls)
    for seed, answer in enumerate(answers):
        images = expected([seed % 10] * 2, [seed, seed + 1]).images
        np.testing.assert_array_equal(answer.as_numpy("images"), images)


def test_a_request_may_ask_to_wait_less_and_is_refused_when_it_has_waited(
    client: grpc.InferenceServerClient,
) -> None:
    """While 64 rows are made, another request may wait a millisecond only."""
    requests = [("fashion-32", rows(0, 64)), ("fashion-32", rows(1, 1))]
    _, refused = split(infer_together(client, requests, timeouts_us=[None, 1000]))
    assert [each.status() for each in refused] == ["StatusCode.UNAVAILABLE"]
    assert "timeout expired" in refused[0].message()


# --- the second server's queue takes one request ---------------------------------------------


def test_a_full_queue_refuses_at_once_and_what_it_took_is_right(
    second_client: grpc.InferenceServerClient, expected: Expected
) -> None:
    requests = [("fashion-32", rows(seed, 16)) for seed in range(8)]
    given, refused = split(infer_together(second_client, requests))
    assert len(refused) >= 2
    assert {each.status() for each in refused} == {"StatusCode.UNAVAILABLE"}
    assert all("maximum queue size" in each.message() for each in refused)
    for seed, answer in given.items():
        halves = expected([seed] * 16, list(range(seed, seed + 16)), precision="fp16")
        np.testing.assert_array_equal(answer.as_numpy("images"), halves.images)


def test_the_friendly_model_passes_on_that_its_engine_is_full(
    second_client: grpc.InferenceServerClient,
) -> None:
    """One request runs, one waits, and no other may."""
    requests = [("fashion-32", rows(seed, 32)) for seed in range(4)]
    friendly = [("cat", {"class_id": [1]})] * 3
    _, refused = split(infer_together(second_client, [*requests, *friendly])[len(requests) :])
    assert refused
    assert {each.status() for each in refused} == {"StatusCode.UNAVAILABLE"}
    assert all("maximum queue size" in each.message() for each in refused)
    assert all("try again later" in each.message() for each in refused)
