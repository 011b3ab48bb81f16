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

if TYPE_CHECKING:
    from cat_serve.model.checkpoint import Checkpoint

Weights = Literal["ema", "generator"]


@dataclass(frozen=True)
class Family:
    """Published generators that one importer reads.

    Attributes:
        title: how its paper calls it.
        module: has `convert(path, ImportOptions) -> Checkpoint`, or `read(Tensors, ImportOptions) -> Imported`.
        paper, repository: where it is described and written; weights: where a user gets the file.
        licence: of code and weights.
        fid: FID-50K at one forward pass, ImageNet 256 px, as published, never as measured here.
        needs: what a user must have beside the file.
        options: of `ImportOptions`, those that mean something for some of its files alone.
    """

    name: str
    title: str
    module: str
    paper: str
    repository: str
    weights: str
    licence: str
    fid: str
    needs: str = "SD-VAE: stabilityai/sd-vae-ft-mse"
    options: tuple[str, ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="gat",
            title="GAT",
            module="cat_serve.importers.gat",
            paper="Scalable GANs with Transformers, arXiv 2509.24935",
            repository="github.com/hse1032/GAT",
            weights="checkpoints of its train.py; published ones are announced in its README",
            licence="MIT",
            fid="GAT-XL/2 2.18",
        ),
        Family(
            name="advflow",
            title="AdvFlow",
            module="cat_serve.importers.advflow",
            paper="Adversarial Flow Models, arXiv 2511.22475",
            repository="github.com/ByteDance-Seed/Adversarial-Flow-Models",
            weights="huggingface.co/ByteDance-Seed/Adversarial-Flow-Models, xl2_1nfe_guided_*.pth",
            licence="MIT",
            fid="XL/2 2.38, 56 layers 2.08, 112 layers 1.94",
            options=("heads", "repeats"),
        ),
        Family(
            name="imf",
            title="iMF",
            module="cat_serve.importers.imf",
            paper="Improved Mean Flows, arXiv 2512.02012",
            repository="github.com/Lyy-iiis/imeanflow, branch torch",
            weights="huggingface.co/Lyy0725/iMF, iMF-XL-2.pth and the other sizes",
            licence="MIT",
            fid="B/2 3.32, M/2 2.26, L/2 1.83, XL/2 1.72",
            options=("omega", "t_min", "t_max"),
        ),
        Family(
            name="pmf",
            title="pMF",
            module="cat_serve.importers.pmf",
            paper="One-step Latent-free Image Generation with Pixel Mean Flows, arXiv 2601.22158",
            repository="github.com/Lyy-iiis/pMF, branch torch",
            weights="huggingface.co/Lyy0725/pMF",
            licence="MIT",
            fid="B/16 3.15, L/16 2.51, H/16 2.15 (at 512 px B/32 3.63, L/32 2.69, H/32 2.36)",
            needs="nothing: it makes pixels",
            options=("omega", "t_min", "t_max", "noise_scale"),
        ),
        Family(
            name="soflow",
            title="SoFlow",
            module="cat_serve.importers.soflow",
            paper="SoFlow: Solution Flow Models, arXiv 2512.15657",
            repository="github.com/zlab-princeton/SoFlow",
            weights="huggingface.co/zlab-princeton/SoFlow, XL-2-cond and the other sizes",
            licence="MIT",
            fid="B/2 4.85, M/2 3.73, L/2 3.20, XL/2 2.96",
            options=("heads",),
        ),
        Family(
            name="dmf",
            title="DMF",
            module="cat_serve.importers.dmf",
            paper="Decoupled MeanFlow, arXiv 2510.24474",
            repository="github.com/kyungmnlee/dmf",
            weights="huggingface.co/kyungmnlee/DMF",
            licence="none stated: ask its authors",
            fid="XL/2 2.16 (at 512 px 2.12)",
            needs="SD-VAE: stabilityai/sd-vae-ft-ema",
            options=("heads", "encoder_blocks"),
        ),
        Family(
            name="alphaflow",
            title="alpha-Flow",
            module="cat_serve.importers.alphaflow",
            paper="alpha-Flow, arXiv 2510.20771",
            repository="github.com/snap-research/alphaflow",
            weights="huggingface.co, linked in its README; pickles that may want code executed",
            licence="Snap's, non-commercial",
            fid="alpha-Flow-XL/2+ 2.58, its MeanFlow-XL/2 3.47",
            needs="the SD-VAE of its configuration, as diffusers writes it",
            options=("heads",),
        ),
        Family(
            name="meanflow",
            title="MeanFlow",
            module="cat_serve.importers.meanflow",
            paper="Mean Flows for One-step Generative Modeling, arXiv 2505.13447",
            repository="github.com/zhuyu-cs/MeanFlow",
            weights="checkpoints of its train.py; none is published",
            licence="MIT",
            fid="XL/2 3.43 (the paper's, of other weights)",
            needs="SD-VAE: stabilityai/sd-vae-ft-ema",
            options=("heads",),
        ),
        Family(
            name="facm",
            title="FACM",
            module="cat_serve.importers.facm",
            paper="Flow-Anchored Consistency Models, arXiv 2507.03738",
            repository="github.com/ali-vilab/FACM",
            weights="huggingface.co/Peterande/FACM",
            licence="Apache-2.0",
            fid="XL/1 1.70",
            needs="VA-VAE f16d32 and latents_stats.pt, both linked in its README",
            options=("latent_stats",),
        ),
    )
}


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
