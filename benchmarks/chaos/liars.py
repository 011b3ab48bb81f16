"""Triton servers that lie under load: what no real one can be made to do on demand.

A stand-in speaks the server's own protocol over a real connection and computes with the model that ships, until it is told
to lie. It is two-faced where that is harder on the service: asked for the golden images it tells the truth, so that it
is let in again, and lies again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.chaos.faults import Digests, Load, Survived, found, survive
from benchmarks.chaos.lies import CLIENTS, FEW, LIES, Answer, Lie
from benchmarks.chaos.results import Result, at_least
from benchmarks.chaos.servers import ROOT, running
from benchmarks.chaos.traffic import OVER_LIARS
from benchmarks.chaos.triton import MODEL
from cat_serve.backends.base import Backend, EngineOptions
from cat_serve.backends.onnxruntime import open_backend
from cat_serve.contract import Batch, Output
from cat_serve.manifest import load_artefact

LOAD = Load(CLIENTS, OVER_LIARS)
LIES_MOST_S = 60.0
# Nobody stalls here, and a slow machine must not look like it.
STALL_MS, ATTEMPT_MS = 10_000, 20_000
CALLS_AT_ONCE = 64
DTYPES = {"FP32": np.float32, "INT64": np.int64}


class Truth:
    """What the model that ships makes of each row, computed once: the servers are not what is measured here."""

    def __init__(self, engine: Backend) -> None:
        self._engine = engine
        self._images: dict[bytes, np.ndarray] = {}
        self._one_pass = threading.Lock()
        manifest = engine.artefact.manifest
        self._golden = manifest.golden.batch(manifest.z_shape).z

    def of(self, batch: Batch) -> Output:
        """Return the images of a batch."""
        columns = (batch.z, batch.class_id, batch.truncation_psi)
        names = [b"".join(column[row].tobytes() for column in columns) for row in range(len(batch))]
        with self._one_pass:
            new = [row for row, name in enumerate(names) if name not in self._images]
            if new:
                made = self._engine.run(Batch(*(column[new] for column in columns)))
                self._images.update((names[row], made.images[i]) for i, row in enumerate(new))
        return Output(np.stack([self._images[name] for name in names]), np.ones(len(names), bool))

    def is_golden(self, batch: Batch) -> bool:
        """Say whether somebody wants a proof."""
        return np.array_equal(batch.z, self._golden)


class Liar(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One server.

    Attributes:
        lie: None while it is honest.
        told: how many lies it has told.
    """

    def __init__(self, truth: Truth) -> None:
        self.lie: Lie | None = None
        self.told = 0
        self._truth = truth

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        text = (ROOT / "model_repository" / MODEL / "config.pbtxt").read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Answer:
        batch = _inputs_of(request)
        answer, lie = _answer_of(self._truth.of(batch)), self.lie
        if lie is None or (lie.two_faced and self._truth.is_golden(batch)):
            return answer
        self.told += 1
        return lie.change(answer, context)

    def tell(self, lie: Lie) -> None:
        """Lie for a while, on a slow machine until somebody has heard it, and be honest again."""
        began_s, before, self.lie = time.monotonic(), self.told, lie
        while (spent_s := time.monotonic() - began_s) < lie.seconds or (
            self.told - before < lie.least and spent_s < LIES_MOST_S
        ):
            time.sleep(0.05)
        self.lie = None


def _inputs_of(request: Any) -> Batch:
    columns = {
        given.name: np.frombuffer(raw, DTYPES[given.datatype]).reshape(list(given.shape))
        for given, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    return Batch(columns["z"], columns["class_id"][:, 0], columns["truncation_psi"][:, 0])


def _answer_of(output: Output) -> Answer:
    answer = service_pb2.ModelInferResponse(model_name=MODEL, model_version="1")
    for name, datatype, values in (("images", "UINT8", output.images), ("ok", "BOOL", output.ok[:, None])):  # fmt: skip
        answer.outputs.add(name=name, datatype=datatype, shape=values.shape)
        answer.raw_output_contents.append(values.tobytes())
    return answer


@contextmanager
def liars(count: int) -> Iterator[tuple[list[Liar], list[str]]]:
    """Run so many servers, honest so far; yield them with the flags of a front end over them."""
    artefact = load_artefact(ROOT / "model_repository" / MODEL / "1")
    flags = ["--backend", "triton", "--triton-balance", "round-robin", "--log-level", "warning",
             "--triton-stall-ms", str(STALL_MS), "--triton-attempt-ms", str(ATTEMPT_MS)]  # fmt: skip
    with ExitStack() as stack:
        engine = open_backend(artefact, EngineOptions(threads=1))
        stack.callback(engine.close)
        truth, made = Truth(engine), []
        for _ in range(count):
            liar = Liar(truth)
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(CALLS_AT_ONCE)))
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(liar, server)
            flags += ["--triton-url", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"]
            server.start()
            stack.callback(lambda server=server: server.stop(None).wait())
            made.append(liar)
        yield made, flags


async def lying(count: int, told_lies: Mapping[str, Lie] = LIES) -> Result:
    """Let one of `count` servers tell its lies under load, one after the other."""
    began_s = time.perf_counter()
    survived: list[Survived] = []
    told: dict[str, int] = {}
    digests: Digests = {}
    with liars(count) as (made, flags), running(*flags) as server:
        for name, lie in told_lies.items():
            excused = lie.told if count == 1 else lie.always
            before = made[0].told
            cause = partial(made[0].tell, lie)
            survived.append(await survive(server, name, cause, excused, count, digests, LOAD))
            told[name] = made[0].told - before
        code = await asyncio.to_thread(server.terminate)
        log = server.log
    what = "a server that lies" if count == 1 else f"1 of {count} servers that lies"
    put_to_the_test = at_least("lies told, fewest of one kind", min(told.values()), FEW)
    return found(what, survived, code, log, time.perf_counter() - began_s, LOAD, put_to_the_test)
