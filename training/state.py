"""Save and load what a run needs to go on; replaced in one step, never half written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import written_whole


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values only)."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_state(
    path: Path,
    expected_config: dict[str, Any],
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Read a training state; it must have been made by a run with the same configuration.

    Args:
        complete: gives a saved configuration the settings that are newer than it.

    Raises:
        CheckpointError: the file is damaged, or its configuration differs (the difference is named).
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole training state: {error}",
            hint="remove it to start again from the beginning",
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
        raise CheckpointError(
            f"{path} is no training state of this project.",
            hint="remove it to start again from the beginning",
        )
    try:
        known = complete(state["config"])
    except InvalidInput as error:
        raise CheckpointError(
            f"{path} was written by another version of this project: {error.message}",
            hint="go on with that version, or give another --run folder to start afresh",
        ) from error
    saved, expected = (json.loads(json.dumps(c)) for c in (known, expected_config))
    changed = sorted(k for k in saved.keys() | expected.keys() if saved.get(k) != expected.get(k))
    if changed:
        lines = ", ".join(f"{k}: {saved.get(k)!r} -> {expected.get(k)!r}" for k in changed)
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({lines}).",
            hint="give the old settings to go on, or another --run folder to start afresh",
        )
    return state


def moments(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Return (step, exp_avg_sq) of every parameter, in order."""
    parameters = optimizer.param_groups[0]["params"]
    return [
        (optimizer.state[p]["step"], optimizer.state[p]["exp_avg_sq"])
        for p in parameters
        if p in optimizer.state
    ]


def restore_moments(optimizer: torch.optim.Optimizer, saved: list[tuple[Tensor, Tensor]]) -> None:
    """Put them back; with beta1 = 0, `exp_avg` does not matter."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter, (step, exp_avg_sq) in zip(parameters, saved, strict=True):
        optimizer.state[parameter] = {
            "step": step,
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": exp_avg_sq.to(parameter),
        }
