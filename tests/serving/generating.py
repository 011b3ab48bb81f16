"""What tests of `cat-serve generate` share: the command as a function, and what the service gives for the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

# Runs the command with flags; returns what its last line says.
Generate = Callable[..., dict[str, Any]]


def served(server: httpx.Client, **parameters: Any) -> bytes:
    """Return what the service answers to the same parameters."""
    answer = server.post("/generate", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.content
