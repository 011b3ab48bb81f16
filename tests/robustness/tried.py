"""How many inputs were tried, and how hard a property is tried; for all tests of this folder."""

from __future__ import annotations

import json
import os
from collections import Counter

from hypothesis import HealthCheck, settings

# Where the counts are written at the end, and how many examples of a property are tried; `make chaos` sets both.
COUNTS_FILE = "ROBUSTNESS_TRIED"
EXAMPLES = "ROBUSTNESS_EXAMPLES"
QUICK_EXAMPLES = 60

# The same examples in every run: a failure is a failure for everybody.
PROPERTY = settings(
    max_examples=int(os.environ.get(EXAMPLES, QUICK_EXAMPLES)),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy
)


class Tried:
    """Counts inputs by suite, and those that were answered with success."""

    def __init__(self) -> None:
        self.inputs: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()

    def add(self, suite: str, inputs: int = 1, succeeded: int = 0) -> None:
        """Count inputs of a suite: `schema`, `parsers`, `sockets` or `aborts`."""
        self.inputs[suite] += inputs
        self.succeeded[suite] += succeeded

    def as_json(self) -> str:
        """Return the counts as one line."""
        return json.dumps(
            {
                "inputs_tried": dict(self.inputs),
                "answered_with_success": dict(self.succeeded),
                "total": self.inputs.total(),
            }
        )


TRIED = Tried()
