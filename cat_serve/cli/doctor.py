"""`cat-serve doctor`: look at everything, and say what to do."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cat_serve.cli.arguments import add_settings_command

if TYPE_CHECKING:
    from cat_serve.doctor.finding import Finding
    from cat_serve.settings import Settings


def add_to(commands: Any) -> None:
    """Add the command."""
    from cat_serve.settings import Settings

    what = "look at this machine, the models and the settings, and say what to do"
    add_settings_command(commands, "doctor", what, Settings, doctor)


def doctor(settings: Settings) -> int:
    """Print a table of what was found, and as the last line all of it as JSON.

    Returns:
        0; 1 if something is broken; 2 if something is lacking that the settings ask for.
    """
    from cat_serve.doctor.finding import as_table, exit_code

    findings = examine(settings)
    code = exit_code(findings)
    print(as_table(findings))
    counted = dict(Counter(str(finding.verdict) for finding in findings))
    report = {"passed": code == 0, "counted": counted, "findings": [asdict(f) for f in findings]}
    print(json.dumps(report))
    return code


def examine(settings: Settings) -> list[Finding]:
    """Return everything that can be found."""
    from cat_serve.doctor import artefacts, engines, environment
    from cat_serve.doctor.finding import Finding, Verdict
    from cat_serve.errors import CatServeError
    from cat_serve.repository import find_repository

    findings = list(environment.look(settings))
    try:
        repository = find_repository(settings.model_repository)
    except CatServeError as error:
        return [*findings, Finding("model", "repository", Verdict.FAILED, error.message, error.hint)]  # fmt: skip
    models, found = artefacts.load(repository, settings)
    findings += found
    for artefact in models.values():
        findings += artefacts.chain(artefact, repository, settings)
        findings += engines.look(artefact, settings)
    return [*findings, *artefacts.cached_engines()]
