"""Starting a server, waiting for it and ending it, `python -m export.triton_server` among the ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from cat_serve.errors import BackendUnavailable, MissingDependency
from export.triton_server import server as triton_server
from export.triton_server.__main__ import main
from export.triton_server.installation import Installation, find_installation
from export.triton_server.leftovers import SHARED_MEMORY
from export.triton_server.server import Ports, TritonServer, command

WAIT_SECONDS = 120

RunScript = Callable[[str], TritonServer]


@pytest.fixture
def run_script(tmp_path: Path) -> Iterator[RunScript]:
    """Return a function that runs a shell script in the place of tritonserver."""
    with ExitStack() as servers:

        def run(script: str) -> TritonServer:
            binary = tmp_path / "tritonserver"
            binary.write_text(f"#!/bin/sh\n{script}\n")
            binary.chmod(0o755)
            server = TritonServer(tmp_path, Installation(binary), Ports.free())
            return servers.enter_context(server)

        yield run


def until(condition: Callable[[], bool]) -> None:
    """Wait for something, for a bounded time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_everything_listens_on_loopback_and_what_is_dangerous_is_locked() -> None:
    words = command(Path("models"), Installation(Path("tritonserver")), Ports(1, 2, 3))
    for kind, port in (("http", 1), ("grpc", 2), ("metrics", 3)):
        assert f"--{kind}-address=127.0.0.1" in words
        assert f"--{kind}-port={port}" in words
    assert "--model-control-mode=none" in words
    locks = [word for word in words if "restricted" in word]
    assert len(locks) == 2
    for lock in locks:
        apis, _, key = lock.partition("=")[2].partition(":locked=")
        assert set(apis.split(",")) == {"shared-memory", "model-repository", "trace", "logging"}
        assert len(key) == 32


def test_another_address_is_listened_on_only_when_told(
    run_script: RunScript, tmp_path: Path
) -> None:
    words = command(Path("models"), Installation(Path("x")), Ports(1, 2, 3), host="0.0.0.0")
    addresses = [word for word in words if "-address=" in word]
    assert [word.partition("=")[2] for word in addresses] == ["0.0.0.0"] * 3
    binary = Installation(run_script("exec sleep 60").process.args[0])
    with TritonServer(tmp_path, binary, Ports(1, 2, 3), host="0.0.0.0") as server:
        assert server.grpc_url == "127.0.0.1:2"


def test_models_that_are_named_may_be_controlled() -> None:
    words = command(Path("models"), Installation(Path("x")), Ports(1, 2, 3), ["a", "b"])
    assert {"--model-control-mode=explicit", "--load-model=a", "--load-model=b"} <= set(words)
    assert not any("model-repository," in word for word in words)
    assert any("shared-memory" in word for word in words)


def test_free_ports_are_three_different_ones() -> None:
    ports = Ports.free()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3


def test_the_python_backend_gets_its_own_environment() -> None:
    installation = find_installation()
    assert installation.binary.is_file()
    first = installation.environment["PATH"].split(os.pathsep)[0]
    assert (Path(first) / "python3").exists()
    assert Path(first).parent.name == "env"


def test_without_a_server_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="no tritonserver here") as missing:
        find_installation(home=tmp_path)
    assert "make .triton/installed" in str(missing.value.hint)


def test_a_server_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_installation(home=tmp_path / "nowhere") == Installation(binary)


def test_command_exits_with_2_without_a_binary_or_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = str(tmp_path / "tritonserver")
    assert main(["--repository", str(tmp_path), "--tritonserver", lacking]) == 2
    assert "hint: make .triton/installed" in capsys.readouterr().err
    assert main(["--repository", str(tmp_path / "nowhere")]) == 2
    assert "There is no model repository" in capsys.readouterr().err


def test_waiting_ends_when_the_process_has(run_script: RunScript) -> None:
    with pytest.raises(BackendUnavailable, match="ended with 3"):
        run_script("exit 3").wait_ready()


def test_waiting_ends_when_it_takes_too_long(run_script: RunScript) -> None:
    with pytest.raises(BackendUnavailable, match="not ready within 0 s"):
        run_script("exec sleep 60").wait_ready(seconds=0.2)


def test_a_stopped_process_is_ended(run_script: RunScript) -> None:
    server = run_script("exec sleep 60")
    server.process.send_signal(signal.SIGSTOP)
    until(lambda: "T" in Path(f"/proc/{server.process.pid}/stat").read_text().split(")")[1])
    server.stop()
    assert server.process.returncode == -signal.SIGTERM


def test_a_process_that_does_not_listen_is_killed(
    run_script: RunScript, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton_server, "STOP_SECONDS", 0.2)
    server = run_script(f"trap '' TERM; touch {tmp_path}/deaf; while :; do sleep 0.05; done")
    until((tmp_path / "deaf").exists)
    server.stop()
    assert server.process.returncode == -signal.SIGKILL


def test_an_ended_server_starts_again_on_its_ports(run_script: RunScript) -> None:
    server = run_script("exec sleep 60")
    first, ports = server.process.pid, server.ports
    server.process.kill()
    assert server.restart().process.pid != first
    assert server.process.poll() is None
    assert server.ports == ports


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in listed]


def is_running(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_server_leaves_neither_processes_nor_shared_memory(
    start_triton: Callable[..., TritonServer],
) -> None:
    server = start_triton()
    (prefix,) = [w.rpartition("=")[2] for w in server.process.args if "shm-region" in w]
    stubs = children_of(server.process.pid)
    assert len(stubs) == 3
    assert list(SHARED_MEMORY.glob(f"{prefix}*"))
    os.kill(stubs[0], signal.SIGSTOP)  # one that does not notice that its server is gone
    server.process.kill()
    server.stop()
    until(lambda: not any(map(is_running, stubs)))
    assert not list(SHARED_MEMORY.glob(f"{prefix}*"))


def test_command_serves_until_it_is_told_to_end(project_root: Path) -> None:
    """What `make triton` runs: it says when it is ready and where, answers, and leaves no process behind."""
    ports = Ports.free()
    process = subprocess.Popen(
        [sys.executable, "-m", "export.triton_server", "--repository", "model_repository",
         "--grpc-port", str(ports.grpc), "--http-port", str(ports.http),
         "--metrics-port", str(ports.metrics)],
        cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "Triton is ready" in line)
        assert f"gRPC 127.0.0.1:{ports.grpc}" in said
        with grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
            assert client.is_model_ready("cat")
        (server,) = children_of(process.pid)
        stubs = children_of(server)
        assert len(stubs) == 3
        process.terminate()
        out, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.terminate()  # kill would leave the server behind
        process.wait(WAIT_SECONDS)
    assert process.returncode == 0
    assert json.loads(out) == {"passed": True, "exit_code": 0}
    until(lambda: not any(map(is_running, [server, *stubs])))
