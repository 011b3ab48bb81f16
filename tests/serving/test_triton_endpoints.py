"""Triton servers that lie, break off, are full, or hang: what no real one can be made to do on demand.

A stand-in in this process speaks the server's own protocol over real connections.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import text_format
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tritonclient.grpc import InferResult, model_config_pb2, service_pb2, service_pb2_grpc

from cat_serve.backends.fake import FakeBackend
from cat_serve.backends.triton_wire import require_fits
from cat_serve.contract import Batch, Output
from cat_serve.errors import ArtefactError
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings
from cat_serve.tracing import Tracing
from cat_serve.web.app import create_app

pytestmark = pytest.mark.anyio

CONFIG = """
name: "toy" backend: "{backend}" max_batch_size: 64
input {{ name: "z" data_type: TYPE_FP32 dims: 6 }}
input {{ name: "class_id" data_type: TYPE_INT64 dims: 1 reshape {{ }} }}
input {{ name: "truncation_psi" data_type: TYPE_FP32 dims: 1 reshape {{ }} }}
output {{ name: "images" data_type: TYPE_UINT8 dims: [8, 12, 3] }}
output {{ name: "ok" data_type: TYPE_BOOL dims: 1 reshape {{ }} }}
parameters {{ key: "version" value {{ string_value: "{version}" }} }}
parameters {{ key: "precision" value {{ string_value: "fp32" }} }}
"""


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One server: answers as the fake engine does, unless the test says otherwise.

    Attributes:
        before: awaited with the call's context before it is answered.
        after: changes the answer, a `ModelInferResponse`.
        sizes: rows of every call.
        timeouts: the queue timeout of every call, in microseconds; 0 if it has none.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.engine = FakeBackend(artefact)
        self.config = CONFIG.format(version=artefact.version, backend="tensorrt")
        self.before: Callable[[Any], Any] | None = None
        self.after: Callable[[Any], Any] = lambda response: response
        self.alive = True
        self.sizes: list[int] = []
        self.timeouts: list[int] = []
        self.limits: list[float | None] = []

    async def ServerLive(self, request: Any, context: Any) -> Any:
        if not self.alive:
            await asyncio.sleep(60)
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        assert (request.name, request.version) == ("toy", "1")
        config = text_format.Parse(self.config, model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        assert (request.model_name, request.model_version) == ("toy", "1")
        rows = request.inputs[0].shape[0]
        self.sizes.append(rows)
        self.timeouts.append(request.parameters["timeout"].int64_param)
        self.limits.append(context.time_remaining())
        if self.before is not None:
            await self.before(context)
        return self.after(answer_of(self.engine.run(inputs_of(request))))


def inputs_of(request: Any) -> Batch:
    """Read a call as the server does."""
    dtypes = {"FP32": np.float32, "INT64": np.int64}
    columns = {
        given.name: np.frombuffer(raw, dtypes[given.datatype]).reshape(list(given.shape))
        for given, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    assert columns["class_id"].shape == columns["truncation_psi"].shape == (len(columns["z"]), 1)
    return Batch(columns["z"], columns["class_id"][:, 0], columns["truncation_psi"][:, 0])


def answer_of(output: Output) -> Any:
    response = service_pb2.ModelInferResponse(model_name="toy", model_version="1")
    for name, datatype, values in (
        ("images", "UINT8", output.images),
        ("ok", "BOOL", output.ok[:, None]),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
    return response


@dataclass
class Front:
    client: httpx.AsyncClient
    servers: list[StandIn]
    endpoints: list[Any]

    async def ask(self, query: str = "class=1&seed=1", deadline_ms: int | None = None) -> Any:
        headers = {} if deadline_ms is None else {"X-Deadline-Ms": str(deadline_ms)}
        return await self.client.post(f"/generate?{query}&format=npy", headers=headers)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


FrontOver = Callable[..., Any]


@pytest.fixture
def front_over(repository: Path, add_model: Any) -> FrontOver:
    """Run a front end over so many stand-ins; `prepare` sees them before they are asked anything."""
    artefact = add_model()

    @asynccontextmanager
    async def run(count: int, prepare: Any = None, **settings: Any) -> AsyncIterator[Front]:
        servers = [StandIn(artefact) for _ in range(count)]
        if prepare is not None:
            prepare(*servers)
        async with AsyncExitStack() as stack:
            urls = []
            for servant in servers:
                server = grpc.aio.server()
                service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servant, server)
                urls.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
                await server.start()
                stack.push_async_callback(server.stop, None)
            values = {"backend": "triton", "triton_url": tuple(urls), "max_batch": 4}
            app = create_app(Settings(model_repository=repository, **(values | settings)))
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            await stack.enter_async_context(client)
            await app.state.service.settled.wait()
            for servant in servers:  # what follows is not the golden images
                servant.sizes.clear()
                servant.timeouts.clear()
                servant.limits.clear()
            yield Front(client, servers, app.state.service.engine("toy").endpoints)

    return run


def fails_with(code: grpc.StatusCode, details: str) -> Callable[[Any], Any]:
    async def fail(context: Any) -> None:
        await context.abort(code, details)

    return fail


def _drop_row(response: Any) -> Any:
    response.outputs[0].shape[0] -= 1
    row_bytes = 8 * 12 * 3
    response.raw_output_contents[0] = response.raw_output_contents[0][row_bytes:]
    return response


def _other_size(response: Any) -> Any:
    response.outputs[0].shape[1:3] = [12, 8]
    return response


def _other_dtype(response: Any) -> Any:
    response.outputs[0].datatype = "INT8"
    return response


def _too_few_bytes(response: Any) -> Any:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]
    return response


def _no_flag(response: Any) -> Any:
    del response.outputs[1], response.raw_output_contents[1]
    return response


LIES = {
    "count": _drop_row,
    "shape": _other_size,
    "dtype": _other_dtype,
    "bytes": _too_few_bytes,
    "missing": _no_flag,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_answer_that_breaks_the_contract_is_a_502_and_the_server_is_not_used(
    front_over: FrontOver, lie: Any
) -> None:
    async with front_over(1) as front:
        front.servers[0].after = lie
        answer = await front.ask("class=1&n=2")
        assert (answer.status_code, answer.json()["code"]) == (502, "backend_error")
        assert front.endpoints[0].state == "down"
        assert (await front.client.get("/readyz")).status_code == 503
        front.servers[0].after = lambda response: response
        await front.until(lambda: front.endpoints[0].state == "ready")
        assert (await front.ask()).status_code == 200


async def test_request_moves_from_a_lying_server_to_an_honest_one(front_over: FrontOver) -> None:
    async with front_over(2, triton_balance="round-robin") as front:
        expected = (await front.ask()).content
        front.servers[1].after = _drop_row
        answers = [await front.ask() for _ in range(4)]
        assert [answer.content for answer in answers] == [expected] * 4
        assert [endpoint.state for endpoint in front.endpoints] == ["ready", "down"]


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "NOT_FOUND", "CANCELLED", "UNAVAILABLE"])
async def test_failed_call_is_made_once_more_elsewhere(front_over: FrontOver, code: str) -> None:
    async with front_over(2, triton_balance="round-robin") as front:
        expected = (await front.ask()).content
        front.servers[1].before = fails_with(grpc.StatusCode[code], "broken")
        answer = await front.ask()
        assert answer.content == expected


async def test_only_server_is_asked_again_when_it_has_proved_itself_anew(
    front_over: FrontOver,
) -> None:
    async def break_off_once(context: Any) -> None:
        front.servers[0].before = None
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async with front_over(1) as front:
        expected = (await front.ask()).content
        front.servers[0].before = break_off_once
        assert (await front.ask()).content == expected
        assert front.servers[0].sizes == [1, 1, 3, 1]  # 3: its golden images


async def test_call_that_fails_everywhere_is_tried_twice_and_no_more(front_over: FrontOver) -> None:
    async with front_over(3, triton_balance="round-robin") as front:
        for server in front.servers:
            server.before = fails_with(grpc.StatusCode.INTERNAL, "a path /srv/models")
        answer = await front.ask("class=1&n=2")  # golden images are calls of three
        assert (answer.status_code, answer.json()["code"]) == (502, "backend_error")
        assert "/srv" not in answer.text
        assert [server.sizes.count(2) for server in front.servers] == [1, 1, 0]


@pytest.mark.parametrize("count", [1, 2])
async def test_request_that_the_last_server_broke_off_is_told_that_there_is_none(
    front_over: FrontOver, count: int
) -> None:
    """Both attempts break off before anybody knows that the servers are gone."""

    async def go_away(context: Any) -> None:
        for server in front.servers:
            server.config = "name: 'other'"  # whoever answers now is not the one that was proved
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with front_over(count, triton_balance="round-robin") as front:
        for server in front.servers:
            server.before = go_away
        answer = await front.ask()
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert {endpoint.state for endpoint in front.endpoints} == {"down"}


async def test_server_that_breaks_off_every_call_and_lives_is_a_502(front_over: FrontOver) -> None:
    async def break_off(context: Any) -> None:
        if front.servers[0].sizes[-1] == 2:  # not the golden images
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with front_over(1) as front:
        front.servers[0].before = break_off
        answer = await front.ask("class=1&n=2")
        assert (answer.status_code, answer.json()["code"]) == (502, "backend_error")
        assert front.endpoints[0].state == "ready"


async def test_refused_inputs_are_not_tried_elsewhere(front_over: FrontOver) -> None:
    async with front_over(2) as front:
        for server in front.servers:
            server.before = fails_with(grpc.StatusCode.INVALID_ARGUMENT, "wrong")
        answer = await front.ask()
        assert answer.status_code == 502
        assert sum(len(server.sizes) for server in front.servers) == 1
        assert [endpoint.state for endpoint in front.endpoints] == ["ready", "ready"]


async def test_full_queue_sends_the_request_elsewhere_and_is_a_429_if_all_are_full(
    front_over: FrontOver,
) -> None:
    full = fails_with(grpc.StatusCode.UNAVAILABLE, "[request id: 1] Exceeds maximum queue size")
    async with front_over(2, triton_balance="round-robin") as front:
        front.servers[0].before = full
        assert {(await front.ask()).status_code for _ in range(4)} == {200}
        front.servers[1].before = full
        answer = await front.ask()
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert [endpoint.state for endpoint in front.endpoints] == ["ready", "ready"]


async def test_deadline_goes_with_the_call_and_no_deadline_does_not(front_over: FrontOver) -> None:
    async with front_over(1) as front:
        await front.ask()
        await front.ask(deadline_ms=5000)
        [none, some], [no_limit, limit] = front.servers[0].timeouts, front.servers[0].limits
        assert (none, no_limit) == (0, None)
        assert 3_000_000 < some <= 5_000_000
        assert 3 < limit <= 5


async def test_answer_that_takes_too_long_is_given_up_and_asked_of_another(
    front_over: FrontOver,
) -> None:
    async def hang(context: Any) -> None:
        await asyncio.sleep(60)

    async with front_over(2, triton_balance="round-robin", triton_attempt_ms=300) as front:
        expected = (await front.ask()).content
        front.servers[1].before = hang
        assert (await front.ask()).content == expected
        front.servers[0].before = hang
        answer = await front.ask()
        assert (answer.status_code, answer.json()["code"]) == (504, "backend_timeout")
        await front.until(lambda: {e.state for e in front.endpoints} == {"down"})
        front.servers[0].before = None
        await front.until(lambda: front.endpoints[0].state == "ready")


async def test_busy_server_that_says_that_it_lives_keeps_its_calls(front_over: FrontOver) -> None:
    async def slow(context: Any) -> None:
        await asyncio.sleep(1)

    async with front_over(2, triton_stall_ms=100) as front:
        for server in front.servers:
            server.before = slow
        answers = await asyncio.gather(*(front.ask(deadline_ms=20_000) for _ in range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert [len(server.sizes) for server in front.servers] == [2, 2]


async def test_calls_at_a_server_that_went_silent_move_long_before_their_time_is_over(
    front_over: FrontOver,
) -> None:
    async def hang(context: Any) -> None:
        await asyncio.sleep(60)

    async with front_over(2, triton_balance="round-robin", triton_stall_ms=300) as front:
        silent = front.servers[1]
        silent.before, silent.alive = hang, False
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(front.ask(f"class=1&seed={i}") for i in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        await front.until(lambda: front.endpoints[1].state == "down")
        assert front.endpoints[1].in_flight == 0


async def test_call_with_a_deadline_does_not_wait_until_a_silent_server_counts_as_stalled(
    front_over: FrontOver,
) -> None:
    async def hang(context: Any) -> None:
        await asyncio.sleep(60)

    async with front_over(2, triton_balance="round-robin", triton_stall_ms=60_000) as front:
        silent = front.servers[1]
        silent.before, silent.alive = hang, False
        answers = await asyncio.gather(*(front.ask(deadline_ms=4000) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert silent.sizes


async def test_answer_is_not_held_back_by_the_question_whether_the_server_is_alive(
    front_over: FrontOver,
) -> None:
    async def slow(context: Any) -> None:
        await asyncio.sleep(1.8)

    async with front_over(1, triton_stall_ms=60_000) as front:
        front.servers[0].before, front.servers[0].alive = slow, False
        began = time.perf_counter()
        answer = await front.ask(deadline_ms=6000)  # asked after 1.5 s, and for 1.5 s
        assert answer.status_code == 200
        assert time.perf_counter() - began < 2.8


async def test_calls_at_a_server_that_fails_its_proof_are_made_elsewhere(
    front_over: FrontOver,
) -> None:
    """It is alive and would answer them, with pictures that are as wrong as its golden ones."""

    async def hold_two_rows(context: Any) -> None:
        if front.servers[1].sizes[-1] == 2:
            await asyncio.sleep(60)

    def invert(response: Any) -> Any:
        images = InferResult(response).as_numpy("images")
        response.raw_output_contents[0] = (255 - images).tobytes()
        response.raw_output_contents[1] = bytes(len(images))
        return response

    async with front_over(2, triton_balance="round-robin") as front:
        expected = (await front.ask("class=3&n=2")).content  # the first server's turn
        front.servers[1].before, front.servers[1].after = hold_two_rows, invert
        held = asyncio.create_task(front.ask("class=3&seed=1&n=2"))
        await front.until(lambda: 2 in front.servers[1].sizes)
        assert [(await front.ask()).status_code for _ in range(2)] == [200, 500]
        answer = await asyncio.wait_for(held, 20)
        assert answer.status_code == 200
        assert answer.content == (await front.ask("class=3&seed=1&n=2")).content != expected
        assert front.endpoints[1].state == "down"


async def test_least_loaded_server_gets_the_call(front_over: FrontOver) -> None:
    async def until_released(context: Any) -> None:
        await released.wait()

    released = asyncio.Event()
    async with front_over(3, triton_balance="least-loaded") as front:
        for server in front.servers:
            server.before = until_released
        asked = []
        for query in ("class=1&n=4", "class=1&n=2", "class=1&n=1", "class=1&n=2", "class=1&n=1"):
            asked.append(asyncio.create_task(front.ask(query)))
            await front.until(lambda: sum(len(s.sizes) for s in front.servers) == len(asked))
        assert sorted(server.sizes for server in front.servers) == [[1, 2], [2, 1], [4]]
        released.set()
        assert {(await task).status_code for task in asked} == {200}


async def test_round_robin_counts_calls_only(front_over: FrontOver) -> None:
    async with front_over(3, triton_balance="round-robin") as front:
        for n in (4, 1, 1, 4, 1, 1):
            await front.ask(f"class=1&n={n}")
        assert Counter(tuple(server.sizes) for server in front.servers) == {
            (4, 4): 1,
            (1, 1): 2,
        }


async def test_flagged_image_makes_the_server_prove_itself_while_it_goes_on(
    front_over: FrontOver,
) -> None:
    def flag_one(response: Any) -> Any:
        ok = InferResult(response).as_numpy("ok").copy()
        if len(ok) == 1:  # not the golden images
            ok[0] = False
        response.raw_output_contents[1] = ok.tobytes()
        return response

    async with front_over(1) as front:
        front.servers[0].after = flag_one
        answer = await front.ask()
        assert (answer.status_code, answer.json()["code"]) == (500, "bad_output")
        assert front.endpoints[0].state == "ready"
        await front.until(lambda: 3 in front.servers[0].sizes)  # the golden images


async def test_server_that_has_gone_black_is_asked_no_more(front_over: FrontOver) -> None:
    """Its flags say that all is well; without another look every second request would fail from now on."""

    def black(response: Any) -> Any:
        response.raw_output_contents[0] = bytes(len(response.raw_output_contents[0]))
        return response

    async with front_over(2, triton_balance="round-robin") as front:
        front.servers[1].after = black
        assert sorted([(await front.ask()).status_code for _ in range(2)]) == [200, 500]
        await front.until(lambda: front.endpoints[1].state == "down")
        assert {(await front.ask()).status_code for _ in range(4)} == {200}


async def test_engine_that_was_not_measured_promises_no_bytes(front_over: FrontOver) -> None:
    async with front_over(1) as front:
        assert (await front.ask()).headers["x-determinism"] == "latent"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("dims: 6", "dims: 7", "the contract says"),
        ("[8, 12, 3]", "[8, 8, 3]", "the contract says"),
        ("TYPE_INT64", "TYPE_INT32", "the contract says"),
        ('name: "ok"', 'name: "okay"', "the contract says"),
        ('"fp32"', '"fp16"', "It serves fp16, and fp32 was asked for"),
        ("max_batch_size: 64", "max_batch_size: 3", "It takes 3 images a call, and gets up to 4"),
        ('key: "version"', 'key: "version_1"', None),
        ('"version"', '"something"', None),
    ],
)
async def test_configuration_is_held_against_the_artefact(
    front_over: FrontOver, caplog: pytest.LogCaptureFixture, old: str, new: str, reason: str | None
) -> None:
    def change(server: StandIn) -> None:
        assert old in server.config
        server.config = server.config.replace(old, new)

    async with front_over(1, prepare=change) as front:
        assert front.endpoints[0].state == ("ready" if reason is None else "down")
        assert (await front.ask()).status_code == (200 if reason is None else 503)
    assert reason is None or reason in caplog.text


async def test_version_of_its_own_folder_counts_more_than_the_newest(
    front_over: FrontOver,
) -> None:
    def newer_beside(server: StandIn) -> None:
        own = server.config.split('"version" value { string_value: "')[1][:12]
        server.config = server.config.replace(own, "0" * 12)
        server.config += f'parameters {{ key: "version_1" value {{ string_value: "{own}" }} }}'

    async with front_over(1, prepare=newer_beside) as front:
        assert front.endpoints[0].state == "ready"


def test_only_the_measured_engine_of_a_named_version_promises_bytes(shipped: Artefact) -> None:
    path = shipped.folder.parent / "config.pbtxt"

    def promised(old: str, new: str) -> str:
        text = path.read_text()
        assert old in text
        config = text_format.Parse(text.replace(old, new), model_config_pb2.ModelConfig())
        return require_fits(config, shipped, "fp32", 16)

    assert promised("", "") == "bytes"
    assert promised('backend: "python"', 'backend: "onnxruntime"') == "latent"
    assert promised('key: "precision"', 'key: "unknown"') == "latent"
    with pytest.raises(ArtefactError, match="It serves version 0000"):
        promised(shipped.version, "0" * 12)


async def test_call_carries_the_trace_of_its_request(
    front_over: FrontOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("cat_serve.web.app.from_environment", lambda: Tracing(provider))
    heard: list[dict[str, str]] = []

    async def hear(context: Any) -> None:
        heard.append(dict(context.invocation_metadata()))

    async with front_over(1) as front:
        front.servers[0].before = hear
        assert (await front.ask("class=1&seed=1&n=8")).status_code == 200
    generate = next(span for span in exporter.get_finished_spans() if span.name == "generate")
    wanted = f"00-{generate.context.trace_id:032x}-{generate.context.span_id:016x}-"
    assert len(heard) == 2
    assert all(metadata["traceparent"].startswith(wanted) for metadata in heard)


async def test_call_of_an_untraced_service_carries_nothing(front_over: FrontOver) -> None:
    heard: list[dict[str, str]] = []

    async def hear(context: Any) -> None:
        heard.append(dict(context.invocation_metadata()))

    async with front_over(1) as front:
        front.servers[0].before = hear
        assert (await front.ask()).status_code == 200
    assert heard[0].keys() == {"user-agent"}


async def test_metrics_show_which_server_is_ready_and_name_no_address(
    front_over: FrontOver,
) -> None:
    def one_is_dead(_: StandIn, other: StandIn) -> None:
        other.config = "name: 'other'"

    async with front_over(2, one_is_dead) as front:
        text = (await front.client.get("/metrics")).text
        addresses = [endpoint.url for endpoint in front.endpoints]
    assert 'cat_serve_engine_ready{endpoint="0",model="toy"} 1.0' in text
    assert 'cat_serve_engine_ready{endpoint="1",model="toy"} 0.0' in text
    assert not [address for address in addresses if address in text]
