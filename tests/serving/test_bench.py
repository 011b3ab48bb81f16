"""What `cat-serve bench` measures, and what it says of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from cat_serve.bench import Bounds, measure, table
from cat_serve.cli import main
from cat_serve.cli.bench import is_loopback
from cat_serve.errors import BackendError
from cat_serve.manifest import Artefact
from tests.serving.processes import slow_server


class Subject:
    """Does nothing for some time, and counts how many do so at once."""

    def __init__(self, seconds: float = 0.0, refuse_every: int = 0, fail_at: int = 0) -> None:
        self.seconds, self.refuse_every, self.fail_at = seconds, refuse_every, fail_at
        self.asked: list[int] = []
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self, worker: int) -> Mapping[str, float] | None:
        with self._lock:
            self.asked.append(worker)
            number = len(self.asked)
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(self.seconds)
        with self._lock:
            self._inside -= 1
        if number == self.fail_at:
            raise BackendError("It broke.")
        refused = self.refuse_every and number % self.refuse_every == 0
        return None if refused else {"generate": float(number)}


def test_every_request_counts_but_the_warm_up() -> None:
    subject = Subject()
    case = measure(subject, 4, 2, Bounds(seconds=30, requests=21, warm_up=3))
    assert len(subject.asked) == 21 + 2 * 3
    assert set(subject.asked) == {0, 1}
    assert (case.requests, case.batch, case.concurrency, case.refused) == (21, 4, 2, 0)
    assert case.images_per_second == pytest.approx(4 * 21 / case.seconds)
    assert case.stages == {"generate": 17.0}


def test_latencies_are_ordered_and_seen() -> None:
    subject = Subject(seconds=0.01)
    case = measure(subject, 1, 1, Bounds(seconds=30, requests=20, warm_up=0))
    assert 10 <= case.median_ms <= case.p95_ms <= case.p99_ms <= 1e3 * case.seconds
    assert case.median_ms * 20 / 2 <= 1e3 * case.seconds


def test_so_many_are_asked_at_once_and_no_more() -> None:
    subject = Subject(seconds=0.02)
    measure(subject, 1, 3, Bounds(seconds=30, requests=12, warm_up=0))
    assert subject.most == 3


def test_time_ends_a_case() -> None:
    began_s = time.monotonic()
    case = measure(Subject(seconds=0.01), 1, 2, Bounds(seconds=0.3, warm_up=0))
    assert 0.3 <= time.monotonic() - began_s < 3
    assert 2 <= case.requests <= 60


def test_refused_requests_are_counted_apart() -> None:
    case = measure(Subject(refuse_every=3), 1, 1, Bounds(seconds=30, requests=9, warm_up=0))
    assert (case.requests, case.refused) == (6, 3)
    nothing = measure(Subject(refuse_every=1), 1, 1, Bounds(seconds=30, requests=2, warm_up=0))
    row = nothing.row()
    assert (row["requests"], row["refused"], row["median_ms"]) == (0, 2, None)
    json.dumps(row, allow_nan=False)
    assert "nan" in table([nothing])


def test_failure_ends_all_workers() -> None:
    subject = Subject(seconds=0.01, fail_at=5)
    began_s = time.monotonic()
    with pytest.raises(BackendError, match="It broke"):
        measure(subject, 1, 3, Bounds(seconds=60, warm_up=0))
    assert time.monotonic() - began_s < 5


def test_engine_is_measured_and_its_physics_told(
    capsys: pytest.CaptureFixture[str], shipped: Artefact
) -> None:
    flags = ["--batch", "1", "3", "--concurrency", "1", "2", "--requests", "2", "--warm-up", "1"]
    assert main(["bench", *flags, "--threads", "1", "--class", "ankle boot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["model"] == f"fashion-32@{shipped.version}"
    assert (report["subject"], report["backend"], report["provider"]) == (
        "engine", "onnxruntime", "cpu",
    )  # fmt: skip
    assert (report["precision"], report["threads"], report["warm_up"]) == ("fp32", 1, 1)
    assert report["image_size_px"] == [32, 32]
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["cpu"]
    cases = [(c["batch"], c["concurrency"], c["requests"]) for c in report["cases"]]
    assert cases == [(1, 1, 2), (3, 1, 2), (1, 2, 2), (3, 2, 2)]
    assert all(0 < c["median_ms"] <= c["p99_ms"] for c in report["cases"])
    head = next(line for line in lines if "median ms" in line)
    assert len(head) == len(lines[lines.index(head) + 4])


def test_server_is_measured_over_http(
    capsys: pytest.CaptureFixture[str], shipped: Artefact, shipped_url: str
) -> None:
    to = ["bench", "--url", shipped_url]
    flags = ["--batch", "2", "--concurrency", "2", "--requests", "6", "--format", "webp"]
    assert main([*to, *flags]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*to, "--batch", "65"]) == 2
    assert "n is 65" in capsys.readouterr().err
    assert main([*to, "--model", "other"]) == 2
    assert "fashion-32" in capsys.readouterr().err
    assert (report["subject"], report["model"]) == ("server", f"fashion-32@{shipped.version}")
    assert (report["backend"], report["precision"], report["url"]) == (
        "onnxruntime",
        "fp32",
        shipped_url,
    )
    (case,) = report["cases"]
    assert (case["requests"], case["refused"]) == (6, 0)
    assert case["stages"].keys() == {"queue", "generate", "encode"}
    assert 0 < case["stages"]["generate"] <= case["p99_ms"]


def test_server_that_dies_half_way_leaves_what_was_measured(
    capsys: pytest.CaptureFixture[str], add_model: Any, repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from cat_serve import bench

    add_model()
    real, cases = bench.measure, []

    with slow_server(repository, pass_s=0) as (url, process):

        def measure_and_kill(*arguments: Any) -> Any:
            if cases:
                process.kill()
                process.wait()
            cases.append(real(*arguments))
            return cases[-1]

        monkeypatch.setattr(bench, "measure", measure_and_kill)
        flags = ["--batch", "1", "2", "--concurrency", "1", "--requests", "4", "--warm-up", "0"]
        assert main(["bench", "--url", url, "--class", "1", *flags]) == 1
        captured = capsys.readouterr()
        assert "error: The server did not answer" in captured.err
        report = json.loads(captured.out.splitlines()[-1])
        assert [case["batch"] for case in report["cases"]] == [1]
        assert (report["passed"], report["ended"][:21]) == (False, "The server did not an")
        assert main(["bench", "--url", url, "--class", "1", *flags]) == 1  # nothing was measured
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("error: ")) == ("", 1)


def test_overloaded_server_refuses_and_that_is_told(
    add_model: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model()
    with slow_server(repository, pass_s=0.05) as (url, _):
        flags = ["--batch", "1", "--concurrency", "6", "--seconds", "1", "--warm-up", "0"]
        assert main(["bench", "--url", url, *flags]) == 0
        (case,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
        assert httpx.get(f"{url}/readyz").status_code == 200
    assert case["refused"] > 0
    assert 2 <= case["requests"] <= 25  # it makes 20 images a second
    assert case["images_per_second"] < 25


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--url", "http://10.1.2.3:8000"], "is not this machine"),
        (["--url", "nonsense"], "'nonsense' is no address"),
        (["--url", "http://127.0.0.1.example:1"], "is not this machine"),
        (["--batch", "0"], "1 or more"),
        (["--seconds", "nan"], "more than 0"),
        (["--batch", "100000"], "the model's largest"),
        (["--class", "sneeker"], "did you mean 'sneaker'"),
        (["--backend", "triton"], "CAT_SERVE_TRITON_URL"),
        (["--threads", "-1"], "CAT_SERVE_THREADS"),
    ],
)
def test_wrong_usage_is_told_before_any_measurement(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *flags]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_loopback_is_known_by_its_name() -> None:
    for url in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:80", "http://127.9.9.9"):
        assert is_loopback(url)
    for url in (
        "http://0.0.0.0",
        "http://localhost.evil",
        "http://10.0.0.1",
        "nonsense",
        "http://[",
    ):
        assert not is_loopback(url)
