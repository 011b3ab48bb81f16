"""Start NVIDIA Triton on a model repository, on loopback unless told otherwise, and end it again.

    python -m export.triton_server --repository model_repository

Runs the `tritonserver` that `make .triton/installed` put into the checkout (a CPU server with the python backend only,
out of the nvidia-pytriton package) or, with --tritonserver, any other. Ctrl-C ends it. The model-control and
shared-memory interfaces stay closed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from export.triton_server.installation import find_installation
from export.triton_server.server import HOST, Ports, TritonServer


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.triton_server", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"))
    add("--tritonserver", type=Path, metavar="FILE", help="another server's executable")
    add("--host", default=HOST, help="address to listen on; 0.0.0.0 for all (default: %(default)s)")
    add("--http-port", type=int, default=8003, help="(default: %(default)s)")
    add("--grpc-port", type=int, default=8001, help="(default: %(default)s)")
    add("--metrics-port", type=int, default=8002, help="(default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="triton")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a server until it is interrupted; return how it ended."""
    from cat_serve.errors import InvalidInput

    if not arguments.repository.is_dir():
        raise InvalidInput(f"There is no model repository {arguments.repository}.")
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    installation = find_installation(arguments.tritonserver)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TritonServer(arguments.repository, installation, ports, host=arguments.host) as server:
        try:
            server.wait_ready()
            print(f"Triton is ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics "
                  f"{server.metrics_url}", file=sys.stderr, flush=True)  # fmt: skip
            code = server.process.wait()
        except KeyboardInterrupt:
            server.stop()
            code = server.process.returncode
    return {"passed": code == 0, "exit_code": code}


if __name__ == "__main__":
    sys.exit(main())
