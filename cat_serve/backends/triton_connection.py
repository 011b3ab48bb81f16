"""The connection to one Triton server, for one model: the three questions that are asked over it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import AioRpcError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cat_serve.backends.triton_wire import (
    CallFailed,
    failure,
    infer_request,
    read_output,
    require_fits,
    unreachable,
)
from cat_serve.contract import Batch, Output, Precision
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendError, BackendUnavailable
from cat_serve.golden import golden_pair, require_golden
from cat_serve.manifest import Artefact, Determinism
from cat_serve.observation import OUTGOING
from cat_serve.passes import concatenated, sliced

UNLIMITED = -1
CHANNEL = [
    # 64 images of 512 px are 50 MB, and gRPC takes 4 by itself
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.max_receive_message_length", UNLIMITED),
    # when to try again is decided here; gRPC's own pauses grow to two minutes
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
    # so that the state of a channel is that of its own connection
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Proof:
    """What a server has shown: what its bytes promise, and the hash of the golden images as it made them."""

    determinism: Determinism
    golden: str


class Connection:
    """See the module; made inside a running event loop.

    Args:
        precision: what the server is to serve.
        max_batch: the largest call that it will get.

    Attributes:
        heard_s: when it last answered anything, of `time.perf_counter`.
    """

    def __init__(self, url: str, artefact: Artefact, precision: Precision, max_batch: int) -> None:
        self.heard_s = -math.inf
        self._artefact = artefact
        self._precision = precision
        self._max_batch = max_batch
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def is_open(self) -> bool:
        """Say whether it is still the connection over which the last call went.

        gRPC does not connect again before the next call, so that a lost connection cannot be missed by whoever looks
        before calling.
        """
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def require_alive(self, limit_s: float) -> None:
        """Ask whether the server is alive. A busy one says so, too.

        Raises:
            BackendUnavailable: it does not say so in time.
        """
        try:
            answer = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=limit_s)
        except AioRpcError as error:
            raise unreachable(error) from error
        self.heard_s = time.perf_counter()
        if not answer.live:
            raise BackendUnavailable("It says that it is not alive.")

    async def infer(self, batch: Batch, deadline: Deadline) -> Output:
        """Make images. Cancelled, it cancels the call, which the server then drops from its queue.

        Raises:
            CallFailed: it did not, and what that means.
        """
        request = infer_request(batch, self._artefact, deadline)
        limit_s = max(0.0, deadline.left_s) if deadline.exists else None
        try:
            response = await self._stub.ModelInfer(
                request, timeout=limit_s, metadata=OUTGOING.get() or None
            )
            self.heard_s = time.perf_counter()
            return read_output(response, batch, self._artefact)
        except AioRpcError as error:
            raise failure(error, deadline) from error
        except BackendError as error:
            raise CallFailed(error) from error

    async def prove(self) -> Proof:
        """Compare the server's configuration with the artefact, and let it make the golden images.

        Raises:
            BackendUnavailable: it does not answer.
            ArtefactError: it serves something else.
            BackendError: its answers break the contract, or are not the golden images.
        """
        name, version = self._artefact.manifest.model, self._artefact.folder.name
        expected, batch = await asyncio.to_thread(golden_pair, self._artefact)
        try:
            response = await self._stub.ModelConfig(
                service_pb2.ModelConfigRequest(name=name, version=version)
            )
            determinism = require_fits(
                response.config, self._artefact, self._precision, self._max_batch
            )
            output = await self._in_calls(batch)
        except AioRpcError as error:
            raise unreachable(error) from error
        except CallFailed as failed:
            raise failed.error from failed
        require_golden(output, expected, self._artefact, self._precision, "Triton")
        return Proof(determinism, hashlib.sha256(output.images.tobytes()).hexdigest())

    async def close(self) -> None:
        await self._channel.close()

    async def _in_calls(self, batch: Batch) -> Output:
        """Make images in calls that are as large as those of requests may be."""
        size = self._max_batch
        starts = range(0, len(batch), size)
        parts = [sliced(batch, slice(start, start + size)) for start in starts]
        return concatenated([await self.infer(part, NEVER) for part in parts])
