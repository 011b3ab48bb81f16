"""The served OpenAPI document against the server, by schemathesis with all of its checks; see schema_hooks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.conftest import Watched, serve
from tests.robustness.tried import Tried

HERE = Path(__file__).parent
# Few images a request: it is the requests that are many. schema_hooks.py knows the first of these.
FLAGS = ("--max-images-per-request", "8", "--max-frames-per-request", "8")
KEY = "a-key-for-the-tests-of-the-document"
LEAST_SUCCESS = 0.3
CHECKS = 14
SCHEMA_EXAMPLES = "ROBUSTNESS_SCHEMA_EXAMPLES"  # of each address, in the slow tests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    yield from serve(tmp_path_factory.mktemp("schema") / "log", *FLAGS)


def run_schemathesis(server: Watched, folder: Path, document: str, *options: str) -> Counter[int]:
    """Run the command with its default phases and all checks; return how often each status was answered."""
    report = folder / "report.ndjson"
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file", str(HERE / "schemathesis.toml"),
        "run", document, "--checks", "all", "--seed", "1", "--generation-database", "none",
        "--no-color", "--continue-on-failure", "--report", "ndjson", "--report-ndjson-path", str(report),
        *options,
    ]  # fmt: skip
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    require_all_checks(report)
    return statuses(report)


def statuses(report: Path) -> Counter[int]:
    """Return how often each status was answered."""
    return Counter(
        exchange["response"]["status_code"]
        for recorder in recorders(report)
        for exchange in recorder.get("interactions", {}).values()
        if exchange.get("response")
    )


def require_all_checks(report: Path) -> None:
    """Fail if a check was left out: the command is green without it, too."""
    ran = {
        check["name"]
        for recorder in recorders(report)
        for checks in recorder.get("checks", {}).values()
        for check in checks
    }
    assert {"not_a_server_error", "positive_data_acceptance", "late_only_after_a_deadline"} <= ran
    assert len(ran) >= CHECKS, sorted(ran)


def recorders(report: Path) -> Iterator[dict]:
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            if "ScenarioFinished" in event:
                yield event["ScenarioFinished"]["recorder"]


def count(answered: Counter[int], tried: Tried, least: int) -> None:
    """Count the cases; fail if they were few, or if few of them were answered with success."""
    succeeded = sum(number for status, number in answered.items() if status < 300)
    tried.add("schema", answered.total(), succeeded)
    assert answered.total() >= least, answered
    assert succeeded / answered.total() >= LEAST_SUCCESS, answered
    assert not [s for s in answered if s >= 500 and s != 504], answered


def test_server_keeps_to_its_document(server: Watched, tried: Tried, tmp_path: Path) -> None:
    # The phase `coverage` (every bound of every parameter, about 1,500 cases) is in the slow test.
    document = server.address + "/openapi.json"
    options = ("--phases", "examples,fuzzing", "--max-examples", "40")
    count(run_schemathesis(server, tmp_path, document, *options), tried, 200)
    server.require_well()


# More than 5,000 cases together: for each group, which addresses, and how many cases at least.
GROUPS = {
    "generate": (("--include-path", "/generate"), 2000),
    "interpolate": (("--include-path", "/interpolate"), 1000),
    "permalinks": (("--include-path-regex", "^/images/"), 1000),
    "others": (("--exclude-path-regex", "^/(generate|interpolate|images/)"), 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_server_keeps_to_its_document_in_thousands_of_cases(
    server: Watched, tried: Tried, tmp_path: Path, group: str
) -> None:
    which, least = GROUPS[group]
    document = server.address + "/openapi.json"
    options = (*which, "--max-examples", os.environ.get(SCHEMA_EXAMPLES, "1000"))
    count(run_schemathesis(server, tmp_path, document, *options), tried, least)
    server.require_well()


@pytest.mark.slow
def test_server_with_keys_keeps_to_its_document(tried: Tried, tmp_path: Path) -> None:
    environment = {"CAT_SERVE_API_KEYS": f"tests={KEY}", "KEY": KEY}
    for server in serve(tmp_path / "log", *FLAGS, **environment):
        document = server.address + "/openapi.json"
        options = ("-H", f"Authorization: Bearer {KEY}", "--max-examples", "20")
        answered = run_schemathesis(server, tmp_path, document, *options)
        count(answered, tried, 1000)
        assert answered[401] > 10, answered  # cases with a wrong key, and with none
        assert KEY not in server.log_since()
