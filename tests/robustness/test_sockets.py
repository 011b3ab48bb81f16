"""A server process and bytes that no decent client sends; after each the server is as well as before."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.robustness.conftest import Watched, serve
from tests.robustness.tried import PROPERTY, Tried
from tests.robustness.wire import (
    RESET,
    Reader,
    answers,
    chunked,
    connection,
    ended,
    exchange,
    request,
    send,
)

REQUEST_TIMEOUT_S, STALL_S, KEEP_ALIVE_S, CONNECTIONS = 1.5, 1.5, 2, 200
PATIENCE_S = 8.0  # for what ends after the longest of these, on a busy machine
MORE_MIB = 96.0
KIB = 1024
POST = "POST /generate HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
GET_IMAGE = "/generate?class=7&seed=1"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    flags = (
        "--request-timeout-s", str(REQUEST_TIMEOUT_S), "--stall-timeout-s", str(STALL_S),
        "--keep-alive-s", str(KEEP_ALIVE_S), "--max-connections", str(CONNECTIONS),
    )  # fmt: skip
    for started in serve(tmp_path_factory.mktemp("sockets") / "log", *flags):
        started.require_well()
        before_mib = started.memory_mib()
        yield started
        assert started.memory_mib() < before_mib + MORE_MIB


@pytest.fixture(autouse=True)
def unharmed(server: Watched) -> Iterator[None]:
    """After every test: an ordinary request is answered as ever, and the log has no traceback."""
    start = len(server.log.read_bytes())
    yield
    server.require_well(start)


def post(head: str, body: bytes = b"") -> bytes:
    return POST.encode() + head.encode("latin-1") + b"\r\n\r\n" + body


MALFORMED: dict[str, tuple[bytes, set[int]]] = {
    "http 0.9": (b"GET /healthz\r\n\r\n", {400}),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "http 3.7": (b"GET /healthz HTTP/3.7\r\nHost: a\r\n\r\n", {400}),
    "http 11.1": (b"GET /healthz HTTP/11.1\r\nHost: a\r\n\r\n", {400}),
    "tls hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, {400}),
    "binary": (bytes(range(256)), {400}),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
    "two hosts": (request("/healthz", "Host: other"), {400}),
    "nul in the address": (request(b"/heal\0thz"), {400}),
    "high byte in the address": (request(b"/generate?class=\xff"), {400}),
    "nul in a header": (request("/healthz", b"X-A: b\0c"), {400}),
    "newline in a header": (request("/healthz", b"X-A: b\nc"), {400}),
    "space before the colon": (request("/healthz", "Content-Length : 5"), {400}),
    "header without a colon": (request("/healthz", "nonsense"), {400}),
    "header of 40 KiB": (request("/healthz", "X-A: " + "b" * 40 * KIB), {431}),
    "3,000 headers": (request("/healthz", *["X-A: b"] * 6000), {431}),
    "head without an end": (b"GET / HTTP/1.1\r\nX-A: " + b"b" * 512 * KIB, {431}),
    "address of 10 KiB": (request("/generate?class=" + "7" * 10 * KIB), {414}),
    "address of 300 KiB": (request("/generate?class=" + "7" * 300 * KIB), {414, 431}),
    "two lengths": (post("Content-Length: 5\r\nContent-Length: 6", b"123456"), {400}),
    "list of lengths": (post("Content-Length: 5, 6", b"123456"), {400}),
    "negative length": (post("Content-Length: -1"), {400}),
    "signed length": (post("Content-Length: +5", b"12345"), {400}),
    "length in hex": (post("Content-Length: 0x5", b"12345"), {400}),
    "length of unicode digits": (post("Content-Length: \xb2", b"12"), {400}),
    "length and chunks": (
        post("Content-Length: 5\r\nTransfer-Encoding: chunked", chunked(b"12345")), {400}),
    "chunks and length": (
        post("Transfer-Encoding: chunked\r\nContent-Length: 5", chunked(b"12345")), {400}),
    "chunked twice": (post("Transfer-Encoding: chunked, chunked", chunked(b"1")), {400}),
    "two encodings": (
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", chunked(b"1")), {400}),
    "gzip": (post("Transfer-Encoding: gzip, chunked", chunked(b"1")), {400}),
    "chunked with a tab": (post("Transfer-Encoding: \x0bchunked", chunked(b"1")), {400}),
    "chunk without a size": (post("Transfer-Encoding: chunked", b"zz\r\nabc\r\n0\r\n\r\n"), {400}),
    "chunk of negative size": (post("Transfer-Encoding: chunked", b"-1\r\nabc\r\n0\r\n\r\n"), {400}),
    "chunk that is longer": (post("Transfer-Encoding: chunked", b"1\r\nabc\r\n0\r\n\r\n"), {400}),
    "chunk of 30 digits": (post("Transfer-Encoding: chunked", b"f" * 30 + b"\r\n"), {400}),
    "huge chunk extension": (
        post("Transfer-Encoding: chunked", b"1;" + b"x" * 256 * KIB + b"\r\na\r\n"), {400, 413, 431}),
    "unknown method": (request("/healthz", method="BREW"), {405}),
    "method in lower case": (request("/healthz", method="get"), {405}),
    "connect": (request("example.com:443", method="CONNECT"), {404, 405}),
    "asterisk": (request("*", method="OPTIONS"), {404, 405}),
    "whole address": (request("http://example.com/healthz"), {404}),
    "dots": (request("/static/../../etc/passwd"), {404}),
    "encoded dots": (request("/static/%2e%2e%2f%2e%2e%2fetc/passwd"), {404}),
    "two slashes": (request("//healthz"), {404}),
    "encoded nul": (request("/healthz%00"), {404}),
    "body that is too large": (post("Content-Length: 70000"), {413}),
    "body of 10 GB": (post("Content-Length: 10000000000"), {413}),
    "body of 10^30 bytes": (post("Content-Length: 1" + "0" * 18), {413}),
    "too large, and waits to be asked": (
        post("Expect: 100-continue\r\nContent-Length: 70000"), {413}),
    "chunks that are too large": (
        post("Transfer-Encoding: chunked", chunked(*[b"x" * 8 * KIB] * 9)), {413}),
    "chunks of a byte": (
        post("Transfer-Encoding: chunked", chunked(*[b" "] * 5000, b'{"class": 207}')), {422}),
    "websocket": (request("/generate", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), {422}),
    "h2c": (request("/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), {200}),
    "http 1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", {200}),
    "bytes of a range": (request(GET_IMAGE, "Range: bytes=0-1,5-,-9"), {200}),
    "accepts nothing": (request("/metrics", "Accept: " + ";q=,,;=" * 100), {200}),
    "knows a thousand tags": (request(GET_IMAGE, "If-None-Match: " + 'W/"a",' * 1000), {200}),
    "id of a header": (request("/healthz", "X-Request-Id: a\tb<script>"), {200}),
}  # fmt: skip

QUERIES = (
    "class=%00", "class=%ff", "class=%ed%a0%80", "class=%D9%A3", "class=%EF%BC%93", "class=%C2%B2",
    "class=7&seed=%D9%A3", "class=7&seed=%EF%BC%91", "class=7&seed=1_0", "class=7&seed=%2B1",
    "class=7&seed=%201", "class=7&seed=1e3", "class=7&seed=0x1", "class=7&n=%C2%B2", "class=7&n=1.0",
    "class=7&seed=" + "9" * 5000, "class=" + "9" * 5000, "class=7&truncation_psi=%D9%A0",
    "class=7&truncation_psi=nan", "class=7&truncation_psi=1e999", "class=7&truncation_psi=1_0",
    "class=7&seeds=%D9%A3-%D9%A4", "class=7&seeds=0-4294967295", "class=7&seeds=" + "1," * 1900 + "1",
    "class=0:%D9%A3", "class=7:nan,8:1", "class=7:1e999", "class=0:0.5,0:0.5", "class=%2B7:1",
    "class[]=7", "class=7;seed=1", "class=7&&&=", "class=7&%00=1", "class=7" + "&a=b" * 1000,
)  # fmt: skip

BODIES = (
    b"[" * 60_000, b'{"class":' * 7_000, b'{"z":' + b"[" * 60_000, b'{"class":1,"z":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"class":7,"z":[' + b"[]," * 20_000 + b"[]]}", b'{"class":{"a":' + b"[" * 500 + b"]" * 500 + b"}}",
    b'{"class":7,"seed":' + b"9" * 5000 + b"}", b'{"class":7,"seed":1' + b"0" * 4000 + b"}",
    b'{"class":' + b"9" * 5000 + b"}", b'{"class":7,"truncation_psi":NaN}', b'{"class":7,"truncation_psi":Infinity}',
    b'{"class":7,"truncation_psi":-Infinity}', b'{"class":7,"truncation_psi":1e999}', b'{"class":7,"seed":NaN}',
    b'{"class":7,"seed":1e999}', b'{"class":1e308}', b'{"class":NaN}', b'{"class":7,"z":[NaN]}', b'{"class":7,"n":1e2}',
    b'{"class":7,"class":8}', b'{"class":207,"class":7}', b'{"class":7,"seed":1,"seed":1}', b'{"class":7,"a":{"b":1,"b":2}}',
    b'{"class":"\xd9\xa3"}', b'{"class":7,"seed":"\xd9\xa3"}', b'{"class":7,"seed":"1"}', b'{"class":7,"n":true}',
    b'{"class":"\\ud800"}', b'{"class":"\xff"}', b'{"class":"7\\u0000"}', b'{"\\u0000":1}', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0",
    b"{", b'{"class":7,}', b"{'class':7}", b'{"class":7}}', b'{"class":7} {"class":8}', b'"class"', b"7", b"\0", b"[]",
    b'{"' + b"a" * 60_000 + b'":1}', b'{"class":"' + b"a" * 60_000 + b'"}', b"{" + b'"a":1,' * 8_000 + b'"b":1}',
)  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_gets_its_status(server: Watched, tried: Tried, name: str) -> None:
    data, statuses = MALFORMED[name]
    tried.add("sockets")
    (answer,) = exchange(server.port, data)
    assert answer.status in statuses, answer
    assert 100 not in answer.informational
    if answer.status >= 400:
        assert answer.headers["content-type"] == PROBLEM
        assert json.loads(answer.body)["status"] == answer.status


def test_query_that_means_nothing_is_refused(server: Watched, tried: Tried) -> None:
    for query in QUERIES:
        tried.add("sockets")
        (answer,) = exchange(server.port, request(f"/generate?{query}", method="POST", body=b""))
        assert answer.status == 422, (query[:80], answer)
        assert json.loads(answer.body)["code"] in answer.body.decode()


@pytest.mark.parametrize("path", ["/generate", "/interpolate", "/v1/images/generations"])
def test_body_that_means_nothing_is_refused(server: Watched, tried: Tried, path: str) -> None:
    for body in BODIES:
        tried.add("sockets")
        (answer,) = exchange(server.port, request(path, method="POST", body=body))
        assert answer.status == (400 if path.startswith("/v1") else 422), (body[:80], answer)
        assert len(answer.body) < 8 * KIB


def test_head_is_answered_as_get_without_a_body(server: Watched, tried: Tried) -> None:
    paths = (GET_IMAGE, "/classes", "/models", "/healthz", "/readyz", "/v1/models", "/", "/openapi.json", "/docs", "/nothing")  # fmt: skip
    for path in paths:
        tried.add("sockets")
        with connection(server.port) as opened:
            send(opened, request(path) + request(path, method="HEAD") + request("/healthz"))
            reader = Reader(opened)
            got, head, after = reader.next(), reader.next("HEAD"), reader.next()
        assert got is not None
        assert head is not None
        assert (head.status, head.body) == (got.status, b"")
        for name in ("content-length", "content-type", "etag", "x-seed"):
            if path != "/nothing" or name != "content-length":  # the request's id is in the body
                assert head.headers.get(name) == got.headers.get(name), (path, name)
        assert after is not None
        assert after.status == 200


def test_head_of_an_address_that_takes_only_post_is_405(server: Watched) -> None:
    (answer,) = exchange(server.port, request("/interpolate", method="HEAD"), "HEAD")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_expectation_is_met_before_the_body_is_sent(server: Watched, tried: Tried) -> None:
    tried.add("sockets", succeeded=1)
    body = b'{"class": 7, "seed": 1}'
    with connection(server.port) as opened:
        send(opened, post(f"Expect: 100-continue\r\nContent-Length: {len(body)}"))
        assert opened.recv(100).startswith(b"HTTP/1.1 100 ")
        send(opened, body)
        (answer,) = answers(opened)
    assert answer.body == server.image


def test_head_that_comes_too_slowly_is_408(server: Watched, tried: Tried) -> None:
    tried.add("sockets")
    began_s = time.monotonic()
    with connection(server.port) as opened:
        for byte in request("/healthz", "X-A: " + "b" * 300):
            if not send(opened, bytes([byte])) or time.monotonic() - began_s > PATIENCE_S:
                break
            time.sleep(0.05)
        (answer,) = answers(opened)
    assert answer.status == 408
    assert json.loads(answer.body)["code"] == "request_timeout"
    assert REQUEST_TIMEOUT_S * 0.9 < time.monotonic() - began_s < PATIENCE_S


@pytest.mark.parametrize("chunks", [False, True], ids=["length", "chunks"])
def test_body_that_comes_too_slowly_is_408(server: Watched, tried: Tried, chunks: bool) -> None:
    tried.add("sockets")
    head = "Transfer-Encoding: chunked" if chunks else "Content-Length: 1000"
    began_s = time.monotonic()
    with connection(server.port) as opened:
        send(opened, post(head))
        while time.monotonic() - began_s < PATIENCE_S:
            if not send(opened, b"1\r\na\r\n" if chunks else b"a"):
                break
            opened.settimeout(0.1)
            try:
                if opened.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
        opened.settimeout(PATIENCE_S)
        (answer,) = answers(opened)
    assert (answer.status, json.loads(answer.body)["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("first", [b"", request("/healthz")], ids=["new", "kept"])
def test_connection_that_sends_nothing_is_closed(
    server: Watched, tried: Tried, first: bytes
) -> None:
    tried.add("sockets")
    with connection(server.port) as opened:
        if first:
            send(opened, first)
            assert next(answers(opened)).status == 200
        began_s = time.monotonic()
        opened.settimeout(PATIENCE_S)
        assert ended(opened)
        assert time.monotonic() - began_s > 1.0


def test_endless_body_of_a_refused_request_is_not_read_for_ever(
    server: Watched, tried: Tried
) -> None:
    tried.add("sockets")
    with connection(server.port) as opened:
        send(opened, post("Content-Length: 1000000000"))
        began_s = time.monotonic()
        while send(opened, b"x" * 1000) and time.monotonic() - began_s < PATIENCE_S:
            time.sleep(0.01)
        assert time.monotonic() - began_s < PATIENCE_S


def test_client_that_reads_nothing_is_dropped(server: Watched, tried: Tried) -> None:
    tried.add("sockets")
    wanted = request("/openapi.json") * 2000
    with connection(server.port, receive_bytes=4 * KIB) as opened:
        threading.Thread(target=send, args=(opened, wanted), daemon=True).start()
        time.sleep(STALL_S / 2)
        assert connections(server, opened) == 1
        assert until(lambda: connections(server, opened) == 0, PATIENCE_S)


def test_client_that_reads_slowly_gets_all(server: Watched, tried: Tried) -> None:
    """Longer than the time-out in all, and something at every look."""
    tried.add("sockets", succeeded=1)
    with connection(server.port, receive_bytes=4 * KIB) as opened:
        send(opened, request("/generate?class=7&seed=1&n=64&format=npy&response=image"))
        began_s, got = time.monotonic(), b""
        while len(got) < 64 * 32 * 32 * 3:
            got += opened.recv(4 * KIB)
            time.sleep(0.05)
        assert time.monotonic() - began_s > STALL_S


def test_many_silent_connections_keep_nobody_out(server: Watched, tried: Tried) -> None:
    """Five times as many as the server takes, all at once, and an ordinary client beside them."""
    count = 5 * CONNECTIONS
    tried.add("sockets", count)
    silent = []
    try:
        for number in range(count):
            opened = socket.create_connection(("127.0.0.1", server.port))
            if number % 2:
                opened.sendall(b"GET /healthz HTTP/1.1\r\nX-A: ")
            silent.append(opened)
            if number % 250 == 249:
                server.require_well()
        assert descriptors(server) < CONNECTIONS + 100
        server.require_well()
    finally:
        for opened in silent:
            opened.close()


def test_connections_that_all_wait_for_images_make_the_next_one_429(
    tmp_path_factory: pytest.TempPathFactory, tried: Tried
) -> None:
    tried.add("sockets")
    log = tmp_path_factory.mktemp("crowd") / "log"
    for crowded in serve(log, "--max-connections", "1", "--max-queued-images", "240"):
        frames = request("/interpolate?class=7&seed=1&seed=2&frames=240", method="POST", body=b"")
        with connection(crowded.port) as busy:
            send(busy, frames)
            time.sleep(0.3)
            (answer,) = exchange(crowded.port, request("/healthz"))
            assert (answer.status, json.loads(answer.body)["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert next(answers(busy)).status == 200


def test_pipelined_requests_are_answered_in_their_order(server: Watched, tried: Tried) -> None:
    tried.add("sockets", 60, succeeded=60)
    seeds = range(20)
    data = b"".join(
        request(f"/generate?class=7&seed={seed}") + request("/healthz") + request("/nothing")
        for seed in seeds
    )
    with connection(server.port) as opened:
        threading.Thread(target=send, args=(opened, data), daemon=True).start()
        for seed, answer in enumerate(list(answers(opened, most=60))[::3]):
            assert answer.headers["x-seed"] == str(seed)


@pytest.mark.parametrize("bad", [b"\0\0\0\r\n\r\n", request("/healthz", "Host: b"), post("Content-Length: x")])  # fmt: skip
def test_malformed_request_behind_a_good_one_takes_nothing_from_it(
    server: Watched, tried: Tried, bad: bytes
) -> None:
    tried.add("sockets")
    with connection(server.port) as opened:
        send(opened, request(GET_IMAGE) + bad)
        good, refused = answers(opened, most=2)
        assert (good.status, good.body) == (200, server.image)
        assert refused.status == 400
        assert ended(opened)


def test_request_hidden_in_a_body_is_not_answered(server: Watched, tried: Tried) -> None:
    """Request smuggling: what one reader takes for a body must not be the next request of another."""
    tried.add("sockets")
    hidden = request("/models")
    data = post(
        f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked", b"0\r\n\r\n" + hidden
    )
    with connection(server.port) as opened:
        send(opened, data)
        assert [answer.status for answer in answers(opened, most=2)] == [400]


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 100, 130])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_request_that_is_cut_off_does_no_harm(
    server: Watched, tried: Tried, cut: int, how: str
) -> None:
    tried.add("sockets")
    data = request("/generate", method="POST", body=b'{"class": 7, "seed": 1}')[:cut]
    with connection(server.port) as opened:
        send(opened, data)
        if how == "reset":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif how == "half":
            opened.shutdown(socket.SHUT_WR)
            assert ended(opened)


PIECES = st.sampled_from((
    b"GET", b"POST", b"HEAD", b" ", b"/generate", b"/healthz", b"?class=7", b"&seed=1", b"%", b"%00", b" HTTP/1.1", b" HTTP/1.0",
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"Host: a", b"Content-Length: ", b"5", b"-5", b"0", b"Transfer-Encoding: chunked",
    b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue", b"Content-Type: application/json", b"X-Api-Key: ",
    b'{"class": 7}', b"5\r\n12345\r\n", b"0\r\n\r\n", b": ", b"\xff\xfe", b"Upgrade: websocket", b"Accept: */*",
))  # fmt: skip
STARTS = st.sampled_from((b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n", POST.encode()))


@PROPERTY
@given(STARTS, st.lists(PIECES | st.binary(max_size=20), max_size=25))
def test_bytes_of_any_kind_get_an_answer_or_nothing(
    server: Watched, tried: Tried, start: bytes, pieces: list[bytes]
) -> None:
    tried.add("sockets")
    for answer in exchange(server.port, start + b"".join(pieces), finish=True):
        assert answer.status < 500
    assert server.process.poll() is None


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, for a bounded time; say whether it does."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        if condition():
            return True
        time.sleep(0.1)
    return False


def descriptors(server: Watched) -> int:
    """Return how many files and connections the server has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def connections(server: Watched, opened: socket.socket) -> int:
    """Return how many established connections the system knows from the port of a client to the server."""
    mine, theirs = opened.getsockname()[1], server.port
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        row[1].endswith(f":{theirs:04X}") and row[2].endswith(f":{mine:04X}") and row[3] == "01"
        for row in rows
    )
