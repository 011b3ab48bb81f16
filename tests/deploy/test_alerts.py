"""Prometheus' own tool judges the alerts: each fires when it should, and is silent when it should be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import promtool

HERE = Path(__file__).parent
RULES = HERE.parent.parent / "deploy/prometheus/alerts.yaml"
CASES = HERE / "alerts.yaml"


def judged(rules: Path, cases: Path) -> subprocess.CompletedProcess[str]:
    """Run the cases against rules of the same folders' layout."""
    tool = promtool()
    assert tool, "under CI the Debian package prometheus has to be here"
    return subprocess.run(
        [tool, "test", "rules", str(cases)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of rules and cases that lie to one another as in the repository."""
    rules, cases = tmp_path / "deploy/prometheus/alerts.yaml", tmp_path / "tests/deploy/alerts.yaml"
    for source, place in ((RULES, rules), (CASES, cases)):
        place.parent.mkdir(parents=True)
        shutil.copy(source, place)
    return rules, cases


@pytest.mark.promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = judged(RULES, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("or sum by (instance, model) (cat_serve_reloads_total", "and sum by (instance, model) (cat_serve_reloads_total"),
        ('route!~"/healthz|/readyz|/metrics",', 'route!~"/healthz",'),
        ("backend_error|", "deadline_exceeded|backend_error|"),
        ("for: 10m", "for: 1m"),
    ],
)  # fmt: skip
def test_cases_notice_a_wrong_rule(copy: tuple[Path, Path], right: str, wrong: str) -> None:
    rules, cases = copy
    text = rules.read_text()
    assert right in text
    rules.write_text(text.replace(right, wrong))
    assert judged(rules, cases).returncode == 1


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]  # fmt: skip
    asked = [(each["alertname"], bool(each["exp_alerts"]))
             for case in yaml.safe_load(CASES.read_text())["tests"]
             for each in case["alert_rule_test"]]  # fmt: skip
    assert set(asked) == {(alert, fires) for alert in alerts for fires in (True, False)}
