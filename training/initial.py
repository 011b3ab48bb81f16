"""Start a run from the weights of another one, on other data.

What belongs to a class follows its name. A class that the old model knew keeps its row of the generator's class
embedding, of `w_avg` and of the discriminator's label embedding, wherever it stands now: before the first step it
looks as it did. A new class gets rows drawn from the spread of the old ones, so that both networks see an embedding
of the kind that they were trained on, and the `w_avg` that its embedding has in the mapping network.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cat_serve.errors import CheckpointError
from cat_serve.files import sha256_of
from cat_serve.model.checkpoint import Checkpoint, cat_generator, load_checkpoint, read_safetensors
from cat_serve.model.generator import Generator
from training.discriminator import Discriminator
from training.streams import stream_at

OF_CLASSES = ("mapping.class_embedding", "w_avg", "label_embedding.embedding")  # one row per class
DRAWN_STD = 0.02  # of embeddings that are not trained
W_AVG_SAMPLES = 1024
SHOWN = 5
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
            CheckpointError: one of them is missing, damaged, or no such file of this project; or it is no CAT generator.
        """
        checkpoint = load_checkpoint(path)
        cat_generator(checkpoint)
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

    def fill(
        self,
        generator: Generator,
        discriminator: Discriminator,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Copy the weights, and print what was taken and what is new.

        Args:
            class_names: of the data; by default those of the checkpoint, in its order.

        Raises:
            CheckpointError: another architecture; the settings that differ are named.
        """
        taken = cat_generator(self.checkpoint)
        rows = _rows_by_name(self.checkpoint.class_names, class_names)
        settings = taken.config.to_dict()
        self._require_same(settings, generator.config.to_dict(), "generator")
        _copy(generator, taken.state_dict(), rows)
        _estimate_w_avg(generator, [row for row, old in enumerate(rows) if old is None])
        _say(f"generator from {self.path}")
        _say_classes(rows, class_names or self.checkpoint.class_names)
        if self.discriminator is None:
            _say(f"no discriminator beside {self.path}: a new one")
            return
        settings, tensors = dict(self.discriminator[0]), self.discriminator[1]
        self._require_same(settings, discriminator.config.to_dict(), "discriminator")
        _copy(discriminator, tensors, rows)
        _say("discriminator from beside it")

    def _require_same(self, saved: dict[str, Any], wanted: dict[str, Any], part: str) -> None:
        keys = [key for key in wanted if key not in SAME_WEIGHTS]
        if differ := [key for key in keys if saved.get(key, wanted[key]) != wanted[key]]:
            listed = ", ".join(f"{key} {saved[key]} instead of {wanted[key]}" for key in differ)
            raise CheckpointError(
                f"The {part} of {self.path} is another one: {listed}.",
                hint="take the preset, --width and data that it was made with"
                + ("" if part == "generator" else ", or move its discriminator away for a new one"),
            )


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def _say_classes(rows: Sequence[int | None], names: Sequence[str]) -> None:
    new = [name for row, name in zip(rows, names, strict=True) if row is None]
    if new:
        named = ", ".join(new[:SHOWN]) + (", ..." if len(new) > SHOWN else "")
        _say(
            f"{len(rows) - len(new)} classes are known by their names, {len(new)} are new: {named}"
        )


def _rows_by_name(old: Sequence[str], new: Sequence[str] | None) -> list[int | None]:
    """Return for every class its row in the old model; None if it had none."""
    if new is None:
        return list(range(len(old)))
    at = {name: row for row, name in reversed(list(enumerate(old)))}  # of equal names the first
    return [at.get(name) for name in new]


@torch.no_grad()
def _copy(module: nn.Module, tensors: Mapping[str, Tensor], rows: Sequence[int | None]) -> None:
    """Copy tensors into `module`, those with a row for each class row by row.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    of_classes = {key: _rearranged(tensors[key], rows, key) for key in OF_CLASSES if key in tensors}
    try:
        module.load_state_dict({**tensors, **of_classes})
    except RuntimeError as error:
        raise CheckpointError(f"The weights to start from do not fit: {error}") from error


def _rearranged(old: Tensor, rows: Sequence[int | None], key: str) -> Tensor:
    """Return [len(rows), ...]: old rows where they are named, the others from N(mean, std) of the old ones."""
    noise = torch.randn(len(rows), *old.shape[1:], generator=stream_at(0, key, 0)).to(old)
    std = old.std(0, correction=0) if len(old) > 1 else DRAWN_STD
    made = old.mean(0) + std * noise
    for row, before in enumerate(rows):
        if before is not None:
            made[row] = old[before]
    return made


@torch.no_grad()
def _estimate_w_avg(generator: Generator, classes: Sequence[int]) -> None:
    """Set `w_avg` of some classes to the mean of w over many z, which training's running mean would approach."""
    z = torch.randn(W_AVG_SAMPLES, generator.config.z_dim, generator=stream_at(0, "w_avg", 0))
    for row in classes:
        w = generator.mapping(z, torch.full((W_AVG_SAMPLES,), row))
        generator.w_avg[row] = w.mean(0)
