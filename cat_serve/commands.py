"""What every `python -m` command of this project does with its work: report, errors, exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cat_serve.errors import CatServeError, InvalidInput, MissingDependency

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


def explain_failure(error: CatServeError) -> int:
    """Print an error for people and return the exit code that it stands for."""
    print(f"error: {error}", file=sys.stderr)
    return USAGE if isinstance(error, InvalidInput | MissingDependency) else FAILED


def run_command(work: Callable[[], Mapping[str, Any]], extra: str) -> int:
    """Do the work and print what it returns as one line of JSON on stdout.

    Args:
        work: returns the report; one with `passed` false is of a check that failed.
        extra: the optional dependencies that the command needs, as in `pip install 'cat-serve[extra]'`.

    Returns:
        0; 1 if something failed, or a check did; 2 for wrong arguments or something this machine lacks; 130 if interrupted.
        An error is one line on stderr, with its hint on the next.
    """
    try:
        report = work()
    except ImportError as error:
        hint = f"pip install 'cat-serve[{extra}]'"
        print(f"error: This command needs {error.name}.\n  hint: {hint}", file=sys.stderr)
        return USAGE
    except CatServeError as error:
        return explain_failure(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from where it was", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(report))
    return OK if report.get("passed", True) else FAILED
