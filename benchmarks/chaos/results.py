"""What an experiment found: promises that held or broke, and the figures of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Promise:
    """One promise as it was measured.

    Attributes:
        measured, limit: for people, with their units.
    """

    what: str
    held: bool
    measured: str
    limit: str


@dataclass(frozen=True)
class Result:
    """One experiment.

    Attributes:
        requests: that were sent; `lost` of them got no answer, or one that the contract does not allow.
        faults: that were caused, and that the service came back from.
        inputs: different requests or texts that were tried.
        load: what was held, in words.
        measured: when.
        figures: whatever else was measured; JSON-serialisable.
    """

    name: str
    promises: tuple[Promise, ...]
    seconds: float = 0.0
    requests: int = 0
    lost: int = 0
    faults: int = 0
    inputs: int = 0
    load: str = ""
    memory: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    measured: str = ""

    @property
    def passed(self) -> bool:
        """Whether there were promises, and all of them held."""
        return bool(self.promises) and all(promise.held for promise in self.promises)

    @property
    def broken(self) -> list[str]:
        """Return what did not hold, in words."""
        return [f"{p.what}: {p.measured}, limit {p.limit}" for p in self.promises if not p.held]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {**asdict(self), "passed": self.passed}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Result:
        """Return what `as_dict` was of."""
        values = {name: value for name, value in kept.items() if name != "passed"}
        return cls(**values | {"promises": tuple(Promise(**each) for each in kept["promises"])})


def at_most(what: str, value: float, limit: float, unit: str = "") -> Promise:
    """Return the promise that a value is not above its limit; NaN is above every limit."""
    return Promise(what, value <= limit, shown(value, unit), f"<= {shown(limit, unit)}")


def none_of(what: str, found: list[str]) -> Promise:
    """Return the promise that something did not happen; the first cases are shown."""
    shown = f"{len(found)}: {'; '.join(found[:3])}" if found else "0"
    return Promise(what, not found, shown, "0")


def at_least(what: str, value: float, limit: float, unit: str = "") -> Promise:
    """Return the promise that a value is not below its limit: that an experiment put the service to the test."""
    return Promise(what, value >= limit, shown(value, unit), f">= {shown(limit, unit)}")


def shown(value: float, unit: str = "") -> str:
    """Round for people: three digits, or all digits before the point."""
    value = float(value)
    whole = abs(value) >= 100 or value.is_integer()
    return f"{value:,.0f} {unit}".rstrip() if whole else f"{value:.3g} {unit}".rstrip()
