"""One running Triton server: its command line, its ports, and its life from start to end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cat_serve.errors import BackendUnavailable
from export.triton_server.installation import Installation
from export.triton_server.leftovers import clear_up

HOST = "127.0.0.1"
ANY_HOST = "0.0.0.0"
START_SECONDS = 120.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Ports:
    """Where one server listens."""

    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Return three ports that are free now."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind((HOST, 0))
            return cls(*(each.getsockname()[1] for each in sockets))


class TritonServer:
    """One running server; a context manager that ends it.

    Args:
        models: load these only, and let them be loaded and unloaded (for tests on loopback); None: all, fixed.
        log: where its output goes; by default to our stderr.
        host: the address to listen on; 0.0.0.0 for all of an IPv4 machine's.
    """

    def __init__(
        self,
        repository: Path,
        installation: Installation,
        ports: Ports,
        models: Sequence[str] | None = None,
        log: IO[Any] | None = None,
        host: str = HOST,
    ) -> None:
        self.ports = ports
        self.host = HOST if host == ANY_HOST else host
        self._regions = f"cat_serve_{secrets.token_hex(8)}_"
        self._command = [
            *command(repository, installation, ports, models, host),
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
        ]
        # no bytecode beside the models: a repository may be read-only, and is packed into the wheel
        self._environment = os.environ | installation.environment | {"PYTHONDONTWRITEBYTECODE": "1"}
        self._log = log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log or sys.stderr,
            stderr=subprocess.STDOUT,
        )

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"{self.host}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.ports.metrics}/metrics"

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, seconds: float = START_SECONDS) -> TritonServer:
        """Wait until every model is loaded and warm.

        Raises:
            BackendUnavailable: it ended, or took too long.
        """
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            if (code := self.process.poll()) is not None:
                raise BackendUnavailable(f"tritonserver ended with {code}; its log says why.")
            if time.monotonic() > deadline:
                raise BackendUnavailable(f"tritonserver was not ready within {seconds:.0f} s.")
            time.sleep(0.1)
        return self

    def is_ready(self) -> bool:
        """Ask the server's own readiness probe."""
        try:
            url = f"http://{self.http_url}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def restart(self) -> TritonServer:
        """Start again on the same ports after the process has ended."""
        self.process.wait(STOP_SECONDS)
        clear_up(self._regions)
        self.process = self._start()
        return self

    def stop(self) -> None:
        """End it: politely, then not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # a stopped process hears nothing else
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        clear_up(self._regions)


def command(
    repository: Path,
    installation: Installation,
    ports: Ports,
    models: Sequence[str] | None = None,
    host: str = HOST,
) -> list[str]:
    """Return the command line: everything on one address, model control only for named models.

    What nobody may use needs a key that is drawn here and told to nobody.
    """
    locked = ["shared-memory", "trace", "logging"]
    control = ["--model-control-mode=none"]
    if models is None:
        locked.append("model-repository")
    else:
        control = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models)]
    lock = f"{','.join(locked)}:locked={secrets.token_hex(16)}"
    return [
        str(installation.binary),
        *installation.arguments,
        f"--model-repository={repository}",
        "--disable-auto-complete-config",  # ours are complete
        f"--http-address={host}",
        f"--http-port={ports.http}",
        f"--http-restricted-api={lock}",
        f"--grpc-address={host}",
        f"--grpc-port={ports.grpc}",
        f"--grpc-restricted-protocol={lock}",
        f"--metrics-address={host}",
        f"--metrics-port={ports.metrics}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--exit-timeout-secs=5",
        *control,
    ]
