"""How a server of several processes starts, on Triton too, and how it ends when it cannot."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from pydantic import ValidationError
from tritonclient.grpc import service_pb2_grpc

from cat_serve.commands import FAILED, USAGE
from cat_serve.doctor import environment
from cat_serve.doctor.finding import Verdict
from cat_serve.errors import InvalidInput, MissingDependency
from cat_serve.manifest import GOLDEN_NAME
from cat_serve.settings import Settings
from cat_serve.web.listening import bind
from cat_serve.workers import supervisor
from cat_serve.workers.children import FIRST_DELAY_S, LONGEST_DELAY_S, Child
from cat_serve.workers.owned import private_socket
from cat_serve.workers.supervisor import supervise
from tests.serving.test_triton_endpoints import StandIn
from tests.workers.engines import gated, leave
from tests.workers.processes import COMMAND_LINE, ROOT, START_S, WAIT_S, several


def test_one_process_is_the_default_and_none_is_refused() -> None:
    assert Settings().workers == 1
    for wrong in (0, -1, 257):
        with pytest.raises(ValidationError):
            Settings(workers=wrong)


def test_port_that_is_taken_is_told_before_anything_starts(repository: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MissingDependency, match=f"Port {port}"):
            supervise(Settings(workers=2, port=port, model_repository=repository))


def test_keys_that_are_none_are_told_before_anything_starts(repository: Path) -> None:
    with pytest.raises(InvalidInput, match="API keys"):
        supervise(Settings(workers=2, port=0, model_repository=repository, api_keys="short=1"))


def test_socket_lies_in_a_folder_for_this_user_and_goes_with_it() -> None:
    with private_socket() as (path, listener):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert listener.getsockname() == str(path)
    assert not path.parent.exists()


def test_folder_that_is_too_deep_for_a_socket_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(MissingDependency, match="TMPDIR") as caught, private_socket():
        pass
    assert str(deep) in caught.value.message
    assert not any(deep.iterdir())


def test_doctor_tries_what_several_processes_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(workers: int) -> Any:
        findings = environment.look(Settings(port=0, workers=workers), {})
        return next(finding for finding in findings if finding.subject == "workers")

    monkeypatch.setattr(environment, "available_cores", lambda: 4)
    assert found(1).verdict is Verdict.NONE
    assert found(4).verdict is Verdict.OK
    assert found(5).verdict is Verdict.WARNING
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert found(4).verdict is Verdict.LACKS
    assert "TMPDIR" in found(4).advice


def test_child_that_keeps_ending_is_started_later_and_later() -> None:
    child = Child("worker 1", leave, tuple)
    child.start()
    assert connection.wait([child.process.sentinel], WAIT_S)
    assert child.hear() == {"last": "words"}
    assert child.hear() is None
    assert child.buried() == 3
    assert (child.running, child.pid, child.failures) == (False, None, 1)
    delays = []
    for failures in range(1, 10):
        child.failures = failures
        delays.append(child.start_later())
        assert child.due_s is not None
        assert child.due_s - time.monotonic() == pytest.approx(delays[-1], abs=0.05)
    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays[-1] == LONGEST_DELAY_S


@pytest.mark.slow
def test_worker_that_never_starts_ends_the_server(
    repository: Path, add_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model()
    monkeypatch.setenv("GATED_ENGINE_FOLDER", str(tmp_path))
    monkeypatch.setattr(supervisor, "worker_main", leave)
    before = signal.getsignal(signal.SIGTERM)
    settings = Settings(workers=2, port=0, model_repository=repository)
    assert supervise(settings, gated) == 3
    assert signal.getsignal(signal.SIGTERM) == before


def ended(repository: Path, *flags: str) -> tuple[int, str]:
    """Run the command until it ends by itself; return its exit code and log."""
    result = subprocess.run(
        [sys.executable, "-m", *COMMAND_LINE, "--workers", "2", "--port", "0", *flags],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
        | {"CAT_SERVE_MODEL_REPOSITORY": str(repository)},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert result.stdout == ""
    return result.returncode, result.stderr


@pytest.mark.slow
def test_damaged_model_and_wrong_default_are_told_once_with_the_usual_codes(
    repository: Path, add_model: Any
) -> None:
    artefact = add_model()
    assert_told_once(ended(repository, "--model", "other"), USAGE, "There is no model 'other'.")
    (artefact.folder / GOLDEN_NAME).write_bytes(b"other")
    assert_told_once(ended(repository), FAILED, "is not the file its manifest describes")


def assert_told_once(outcome: tuple[int, str], code: int, what: str) -> None:
    assert outcome[0] == code, outcome[1]
    assert outcome[1].count(what) == 1
    assert "Traceback" not in outcome[1]


@pytest.mark.slow
@pytest.mark.anyio
async def test_engine_process_is_the_one_that_talks_to_triton(
    repository: Path, add_model: Any, tmp_path: Path
) -> None:
    server, stand_in = grpc.aio.server(), StandIn(add_model())
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    def use() -> None:
        triton = {"backend": "triton", "triton_url": url}
        with several(repository, tmp_path, 2, command=COMMAND_LINE, **triton) as front:
            stand_in.sizes.clear()
            with front.client() as client:
                answers = [client.post(f"/generate?class={i}&n=3&seed=1") for i in range(4)]
                late = client.post("/generate?class=1", headers={"X-Deadline-Ms": "60000"})
                card = client.get("/models").json()["models"][0]
            assert {answer.status_code for answer in (*answers, late)} == {200}
            assert (card["backend"], card["determinism"]) == ("triton", "latent")
            front.process.send_signal(signal.SIGTERM)
            assert front.process.wait(WAIT_S) == 0
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{front.url}/healthz")

    try:
        await asyncio.to_thread(use)
    finally:
        await server.stop(None)
    assert sum(stand_in.sizes) == 4 * 3 + 1
