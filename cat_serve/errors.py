"""Every error this project raises on purpose.

CatServeError
 |- InvalidInput            a request or an argument that must be corrected by whoever sent it
 |   |- UnknownClass
 |   `- UnknownModel
 |- ArtefactError           a file that is missing, damaged or made for something else
 |   |- CheckpointError
 |   `- ReloadFailed        the model repository has something new that cannot be served
 |- MissingDependency       this machine lacks a package, a device or a data set
 |- DataError               training data that cannot be used
 |- TrainingDiverged        a loss or a gradient stopped being finite
 |- ProcessLost             another process of a run does not answer any more
 |- ParityError             two forms of one model disagree beyond the budget
 |- QualityError            a model was measured and is worse than required
 |- Overloaded              the waiting room is full; come back later
 |   `- BudgetExceeded      what one caller may ask for is used up
 |- DeadlineExceeded        the time that the request was given is over
 |   `- NeverInTime         not even an idle engine could keep it; nothing was started
 `- BackendError            an engine could not do the work
     |- BackendUnavailable  no engine can take the work now
     |- BackendTimeout      one did not answer in time
     `- BadOutput           an engine answered with an image that must not be shown
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CatServeError(Exception):
    """Base class: a sentence for people, and a hint that says how to repair it.

    Args:
        message: what was wrong, with the value that was got.
        hint: what would be accepted or what to run; shown on a line of its own.
        details: machine-readable facts, JSON-serialisable.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Any] = details

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class InvalidInput(CatServeError):
    code = "invalid_input"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str | None = None, **details: Any
    ) -> None:
        super().__init__(message, hint=hint, **details)
        if code is not None:
            self.code = code


class UnknownClass(InvalidInput):
    code = "unknown_class"


class UnknownModel(InvalidInput):
    code = "unknown_model"


class ArtefactError(CatServeError):
    code = "bad_artefact"


class CheckpointError(ArtefactError):
    code = "bad_checkpoint"


class ReloadFailed(ArtefactError):
    code = "reload_failed"


class MissingDependency(CatServeError):
    code = "missing_dependency"


class DataError(CatServeError):
    code = "bad_data"


class TrainingDiverged(CatServeError):
    code = "training_diverged"


class ProcessLost(CatServeError):
    code = "process_lost"


class ParityError(CatServeError):
    code = "parity_failed"


class Overloaded(CatServeError):
    code = "overloaded"


class BudgetExceeded(Overloaded):
    code = "budget_exceeded"


class DeadlineExceeded(CatServeError):
    code = "deadline_exceeded"


class NeverInTime(DeadlineExceeded):
    """Refused at the door; nothing was started."""


class QualityError(CatServeError):
    code = "quality_too_low"


class BackendError(CatServeError):
    code = "backend_error"


class BackendUnavailable(BackendError):
    code = "backend_unavailable"


class BackendTimeout(BackendError):
    code = "backend_timeout"


class BadOutput(BackendError):
    code = "bad_output"
