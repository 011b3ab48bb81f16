"""What every test may use; nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests (`@pytest.mark.anyio`) on asyncio, as the server does."""
    return "asyncio"
