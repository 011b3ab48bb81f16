"""What every test that talks to a Triton server needs of tritonclient."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from cat_serve.contract import Batch

WAIT_SECONDS = 60
DTYPES = {"U": ("BYTES", np.object_), "i": ("INT64", np.int64), "f": ("FP32", np.float32)}


def tensors(module: ModuleType, columns: dict[str, Any]) -> list[Any]:
    """Return the inputs of one request, for any of tritonclient's clients; a number a row is [B, 1]."""
    inputs = []
    for name, values in columns.items():
        array = np.asarray(values)
        dtype, kind = DTYPES[array.dtype.kind]
        array = array.astype(kind).reshape(len(array), *(array.shape[1:] or (1,)))
        tensor = module.InferInput(name.rstrip("_"), list(array.shape), dtype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def engine_columns(batch: Batch) -> dict[str, Any]:
    return {"z": batch.z, "class_id": batch.class_id, "truncation_psi": batch.truncation_psi}


def parameters(client: grpc.InferenceServerClient, model: str) -> dict[str, str]:
    """Return the parameters of a served configuration."""
    config = client.get_model_config(model, as_json=True)["config"]
    return {name: value["string_value"] for name, value in config["parameters"].items()}


@dataclass(frozen=True)
class Statistics:
    """How many rows a model has answered, and in how many batches."""

    rows: int
    executions: int


def statistics(client: grpc.InferenceServerClient, model: str) -> Statistics:
    """Return the counts since the model was loaded, its warm-up among them."""
    (found,) = client.get_inference_statistics(model).model_stats
    return Statistics(found.inference_count, found.execution_count)


def statistics_after(
    client: grpc.InferenceServerClient, model: str, before: Statistics, rows: int
) -> Statistics:
    """Return what was counted since `before`, once that is `rows` rows; the server counts after it answers."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (now := statistics(client, model)).rows < before.rows + rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return Statistics(now.rows - before.rows, now.executions - before.executions)


def infer_together(
    client: grpc.InferenceServerClient,
    requests: Sequence[tuple[str, dict[str, Any]]],
    timeouts_us: Sequence[int | None] = (),
    **options: Any,
) -> list[Any]:
    """Send all requests before any answer is awaited; return answers and errors in order.

    Args:
        requests: of each, the model and its inputs.
        timeouts_us: of each, the longest wait in the queue that it asks for.
    """
    answers: list[Any] = [None] * len(requests)
    all_there = threading.Semaphore(0)

    def keep(place: int, answer: Any, error: Any) -> None:
        answers[place] = error or answer
        all_there.release()

    for place, (model, columns) in enumerate(requests):
        timeout = timeouts_us[place] if timeouts_us else None
        client.async_infer(
            model,
            tensors(grpc, columns),
            lambda result, error, place=place: keep(place, result, error),
            timeout=timeout,
            **options,
        )
    for _ in requests:
        assert all_there.acquire(timeout=WAIT_SECONDS)
    return answers
