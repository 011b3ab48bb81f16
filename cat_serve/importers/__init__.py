"""Published weights of other one-step generators -> this project's checkpoint. One module a family.

Nothing here downloads anything, and nothing in a file is executed (see `pickled`). This module is light: a family's own
is imported when one of its files is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cat_serve.errors import InvalidInput
from cat_serve.importers.families import FAMILIES, Family

if TYPE_CHECKING:
    from cat_serve.model.checkpoint import Checkpoint

__all__ = ["FAMILIES", "Family", "ImportOptions", "Weights", "convert", "read_class_names"]

Weights = Literal["ema", "generator"]


@dataclass(frozen=True)
class ImportOptions:
    """What a file does not say by itself; None: as the family recommends, or it means nothing there.

    Attributes:
        vae: folder of the decoder (diffusers), or a hub name in the local cache; None for models of pixels.
        name: of the model; None: the family's and the size's.
        class_names: text file, one name a line; None: ImageNet's, where there are 1,000 classes.
        weights: the averaged ones or those of the last step.
        heads: attention heads, where neither the file nor a published width tells.
        repeats: how often a deep AdvFlow runs its blocks.
        omega, t_min, t_max: guidance and the interval of times that it holds for.
        noise_scale: of training's noise, where it is not 1.
        encoder_blocks: how many of DMF's blocks see t.
        latent_stats: file with mean and std of FACM's latents.
    """

    vae: Path | None = None
    name: str | None = None
    class_names: Path | None = None
    weights: Weights = "ema"
    heads: int | None = None
    repeats: int | None = None
    omega: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    noise_scale: float | None = None
    encoder_blocks: int | None = None
    latent_stats: Path | None = None


def convert(family: str, path: Path, options: ImportOptions) -> Checkpoint:
    """Read a published file and return it as a checkpoint.

    Raises:
        InvalidInput: no such family, or options that do not fit it or the file.
        CheckpointError: the file is missing, damaged, of another layout, or wants code executed.
    """
    if family not in FAMILIES:
        raise InvalidInput(f"No family {family!r}.", hint=f"families: {', '.join(FAMILIES)}")
    found = FAMILIES[family]
    _require_meaning(found, options)
    module = import_module(found.module)
    checkpoint: Checkpoint
    if hasattr(module, "convert"):
        checkpoint = module.convert(path, options)
    else:
        from cat_serve.importers.imported import convert_with

        checkpoint = convert_with(module, found, path, options)
    return checkpoint


def _require_meaning(family: Family, options: ImportOptions) -> None:
    """Refuse what means nothing for a family.

    Raises:
        InvalidInput: names the first such option.
    """
    general = {"vae", "name", "class_names", "weights"}
    for field in fields(options):
        given = getattr(options, field.name) is not None and field.name not in general
        if given and field.name not in family.options:
            flag = "--" + field.name.replace("_", "-")
            takes = ", ".join("--" + name.replace("_", "-") for name in family.options)
            raise InvalidInput(
                f"{flag} means nothing for {family.title}.",
                hint=f"it takes {takes or 'no such flag'}",
            )


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
