"""Triton's workers: what they must not import."""

from __future__ import annotations

import subprocess
import sys

# A worker loads these modules in each of its processes; nothing of the server before it belongs there.
LOADS = """
import sys
import cat_serve.triton_models.engine, cat_serve.triton_models.friendly
unwanted = {"fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry", "torch",
            "cat_serve.service", "cat_serve.batching", "cat_serve.settings"}
print(*sorted(unwanted & set(sys.modules)))
"""


def test_workers_load_nothing_of_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
