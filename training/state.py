"""Save and load what a run needs to go on; replaced in one step, never half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cat_serve.errors import CheckpointError
from cat_serve.files import written_whole


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values only)."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, expected_config: dict[str, Any]) -> dict[str, Any]:
    """Read a training state; it must have been made by a run with the same configuration.

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
    saved, expected = (json.loads(json.dumps(c)) for c in (state["config"], expected_config))
    changed = sorted(k for k in saved.keys() | expected.keys() if saved.get(k) != expected.get(k))
    if changed:
        lines = ", ".join(f"{k}: {saved.get(k)!r} -> {expected.get(k)!r}" for k in changed)
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({lines}).",
            hint="give the old settings to go on, or another --run folder to start afresh",
        )
    return state
