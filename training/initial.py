"""Start a run from the weights of another one, on other data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cat_serve.errors import CheckpointError
from cat_serve.files import sha256_of
from cat_serve.model.checkpoint import Checkpoint, load_checkpoint, read_safetensors
from cat_serve.model.generator import Generator
from training.discriminator import Discriminator

OF_CLASSES = ("mapping.class_embedding", "w_avg", "label_embedding.embedding")  # one row per class
SAME_WEIGHTS = (
    "num_classes",
    "attention",
)  # settings that no other tensor's shape or meaning depends on


@dataclass(frozen=True)
class Initial:
    """A checkpoint's averaged generator, and its discriminator where it lies beside it.

    Attributes:
        discriminator: settings and tensors; None if there is none.
        identity: what the run's state and checkpoint say of where it started.
    """

    path: Path
    checkpoint: Checkpoint
    discriminator: tuple[Mapping[str, Any], dict[str, Tensor]] | None
    identity: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Initial:
        """Read `NAME.safetensors`, and `NAME.discriminator.safetensors` if it is there.

        Raises:
            CheckpointError: one of them is missing, damaged, or no such file of this project.
        """
        checkpoint = load_checkpoint(path)
        beside = path.with_name(f"{path.stem}.discriminator.safetensors")
        discriminator, sha256 = None, None
        if beside.is_file():
            description, tensors = read_safetensors(beside)
            if not isinstance(description.get("discriminator"), dict):
                raise CheckpointError(f"{beside} holds no discriminator of this project.")
            discriminator, sha256 = (description["discriminator"], tensors), sha256_of(beside)
        identity = {
            "name": checkpoint.name,
            "nimg": checkpoint.training.get("nimg"),
            "sha256": sha256_of(path),
            "discriminator_sha256": sha256,
        }
        return cls(path, checkpoint, discriminator, identity)

    def fill(self, generator: Generator, discriminator: Discriminator) -> None:
        """Copy the weights, and print what was taken and what is new.

        Rows of classes are kept as they were drawn where the number of classes differs.

        Raises:
            CheckpointError: another architecture; the settings that differ are named.
        """
        taken = self.checkpoint.generator
        settings = taken.config.to_dict()
        self._require_same(settings, generator.config.to_dict(), "generator")
        new = _copy(generator, taken.state_dict())
        _say(f"generator from {self.path}", new)
        if self.discriminator is None:
            _say(f"no discriminator beside {self.path}: a new one", ())
            return
        settings, tensors = dict(self.discriminator[0]), self.discriminator[1]
        self._require_same(settings, discriminator.config.to_dict(), "discriminator")
        _say("discriminator from beside it", _copy(discriminator, tensors))

    def _require_same(self, saved: dict[str, Any], wanted: dict[str, Any], part: str) -> None:
        keys = [key for key in wanted if key not in SAME_WEIGHTS]
        if differ := [key for key in keys if saved.get(key, wanted[key]) != wanted[key]]:
            listed = ", ".join(f"{key} {saved[key]} instead of {wanted[key]}" for key in differ)
            raise CheckpointError(
                f"The {part} of {self.path} is another one: {listed}.",
                hint="take the preset, --width and data that it was made with"
                + ("" if part == "generator" else ", or move its discriminator away for a new one"),
            )


def _say(what: str, new: tuple[str, ...]) -> None:
    print(
        f"{what}{f'; new for other classes: {chr(44).join(new)}' if new else ''}", file=sys.stderr
    )


@torch.no_grad()
def _copy(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy tensors into `module`; return the names of those that keep their drawn values.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    own = module.state_dict()
    new = tuple(
        key for key in OF_CLASSES
        if key in own and key in tensors and own[key].shape != tensors[key].shape
    )  # fmt: skip
    try:
        module.load_state_dict({**tensors, **{key: own[key] for key in new}})
    except RuntimeError as error:
        raise CheckpointError(f"The weights to start from do not fit: {error}") from error
    return new
