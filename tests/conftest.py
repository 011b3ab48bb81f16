"""What every test may use; nothing heavy is imported here."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

# `triton_server` and `start_triton`, which several suites use
pytest_plugins = ["tests.triton_servers"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# the quickest first: it starts and draws in a third of the time
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
UNPACKED_PROMTOOL = Path(__file__).parent.parent / ".prometheus/usr/bin/promtool"


def promtool() -> str | None:
    """Return Prometheus' tool: the machine's, or the one that `make test` unpacked; None if it is not here."""
    here = str(UNPACKED_PROMTOOL) if UNPACKED_PROMTOOL.is_file() else None
    return shutil.which("promtool") or here


def pytest_configure() -> None:
    """Let interrupts through to what tests start: a shell ignores them in all that it runs in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests out that need a Debian package which is not here; under CI they run, and fail."""
    if os.environ.get("CI"):
        return
    missing = {
        "fashion_mnist": None if FASHION_MNIST.is_dir() else "dataset-fashion-mnist",
        "chromium": None if any(map(shutil.which, BROWSERS)) else BROWSERS[0],
        "promtool": None if promtool() else "prometheus",
    }
    for item in items:
        for marker, package in missing.items():
            if package is not None and item.get_closest_marker(marker):
                reason = f"needs the Debian package {package}: apt-get install {package}"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests of each suite ran."""
    ran = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    suites = Counter(
        Path(report.nodeid.split("::")[0]).parts[1].removesuffix(".py") for report in ran
    )
    if suites:
        terminalreporter.section("tests run by suite")
        for suite, count in sorted(suites.items()):
            terminalreporter.write_line(f"{count:5d}  {suite}")


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests (`@pytest.mark.anyio`) on asyncio, as the server does."""
    return "asyncio"
