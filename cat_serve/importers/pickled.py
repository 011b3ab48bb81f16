"""Files of `torch.save`, which are pickles: read with `weights_only`, so that nothing in them is executed."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError

# Besides tensors and plain containers; each only ever gets attributes.
ALLOWED = (argparse.Namespace,)
SANDBOX = (
    "if you trust its origin, open it with torch.load(FILE, weights_only=False) in a sandbox without network, and save "
    "its weights alone with torch.save({'ema': STATE_DICT}, NEW)"
)


def read_pickled(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save`; tensors are mapped into memory and not read before they are used.

    Raises:
        CheckpointError: no such file, not one of `torch.save`, damaged, or it wants something executed.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path.name} is no file of torch.save (or one of a version before 1.6).",
            hint="is it the whole file? An old one: load it and torch.save it again",
        )
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} was not opened: it wants something executed ({_first_line(error)}).",
            hint=SANDBOX,
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is damaged: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not a dictionary.")
    return content


def as_state(value: object, where: str) -> dict[str, Tensor]:
    """Return a state dict, its values float32 tensors (other dtypes are widened).

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{where} is no state dict: {type(value).__name__}.")
    if odd := [k for k, v in value.items() if not isinstance(v, Tensor) or v.is_complex()]:
        raise CheckpointError(f"{where} holds something else than real tensors: {odd[:3]}.")
    return {str(key): tensor.float() for key, tensor in value.items()}


def _first_line(error: Exception) -> str:
    """Return what went wrong without torch's advice, which is to trust the file."""
    text = str(error).replace("Weights only load failed.", "").strip()
    found = text.rpartition("WeightsUnpickler error: ")[2] or type(error).__name__
    return found.strip().splitlines()[0].rstrip(".")
