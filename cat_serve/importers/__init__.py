"""Published weights of other one-step generators -> this project's checkpoint. One module a family.

Nothing here downloads anything, and nothing in a file is executed (see `pickled`). This module is light: a family's own
is imported when one of its files is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from cat_serve.model.checkpoint import Checkpoint

Weights = Literal["ema", "generator"]


@dataclass(frozen=True)
class Family:
    """Published generators that one importer reads.

    Attributes:
        module: has `convert(path, ImportOptions) -> Checkpoint`.
        paper, repository: where it is described and written; weights: where a user gets the file.
        licence: of code and weights.
        fid: FID-50K at one forward pass, ImageNet 256 px, as published, never as measured here.
    """

    name: str
    module: str
    paper: str
    repository: str
    weights: str
    licence: str
    fid: str


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="gat",
            module="cat_serve.importers.gat",
            paper="Scalable GANs with Transformers, arXiv 2509.24935",
            repository="github.com/hse1032/GAT",
            weights="checkpoints of its train.py; published ones are announced in its README",
            licence="MIT",
            fid="GAT-XL/2 2.18",
        ),
    )
}


@dataclass(frozen=True)
class ImportOptions:
    """What a file does not say by itself.

    Attributes:
        vae: folder of the decoder (diffusers), or a hub name in the local cache.
        name: of the model; None: the family's and the size's.
        class_names: text file, one name a line; None: ImageNet's, where there are 1,000 classes.
        weights: the averaged ones or those of the last step.
    """

    vae: Path
    name: str | None = None
    class_names: Path | None = None
    weights: Weights = "ema"


def convert(family: str, path: Path, options: ImportOptions) -> Checkpoint:
    """Read a published file and return it as a checkpoint.

    Raises:
        InvalidInput: no such family, or options that do not fit the file.
        CheckpointError: the file is missing, damaged, of another layout, or wants code executed.
    """
    if family not in FAMILIES:
        raise InvalidInput(f"No family {family!r}.", hint=f"families: {', '.join(FAMILIES)}")
    checkpoint: Checkpoint = import_module(FAMILIES[family].module).convert(path, options)
    return checkpoint


def read_class_names(path: Path | None, count: int) -> tuple[str, ...]:
    """Return `count` class names: a text file's lines, or ImageNet's.

    Raises:
        InvalidInput: there is no file and the classes are not ImageNet's, or the file has another number of lines.
    """
    from cat_serve.classes import IMAGENET_CLASSES, imagenet_names

    if path is None:
        if count == IMAGENET_CLASSES:
            return imagenet_names()
        raise InvalidInput(
            f"The file has {count} classes, which are not ImageNet's {IMAGENET_CLASSES}.",
            hint="give their names with --class-names, a text file with one a line",
        )
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is no text file of class names: {error}") from error
    if len(names) != count or not all(names):
        raise InvalidInput(
            f"{path} has {sum(map(bool, names))} class names, and the file has {count} classes.",
            hint="one name a line, in the order of the classes, no empty line",
        )
    return names
