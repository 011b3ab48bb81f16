"""From a published file to a checkpoint: what every one-step family has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import sha256_of
from cat_serve.importers import Family, ImportOptions, read_class_names
from cat_serve.importers.ldm_vae import load_ldm_vae
from cat_serve.importers.pickled import as_state, read_pickled
from cat_serve.importers.tensors import Tensors
from cat_serve.model.checkpoint import Checkpoint
from cat_serve.model.one_step import OneStep
from cat_serve.model.vae import LatentAffine, load_vae, upscale, vae_sha256

if TYPE_CHECKING:
    from cat_serve.model.vae import Vae


@dataclass(frozen=True)
class Imported:
    """What a family's importer made of a state dict.

    Attributes:
        affine: from the generator's latents to the VAE's; None: it makes pixels.
        size_suffix: of the usual name, behind size and patch.
        folded: constants that are part of the weights now: guidance, times, repetitions.
    """

    generator: OneStep
    affine: LatentAffine | None
    size_suffix: str = ""
    folded: Mapping[str, Any] = field(default_factory=dict)


def scalar(scaling_factor: float) -> LatentAffine:
    """Return posterior = latents / scaling_factor."""
    return LatentAffine(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 1 / scaling_factor))


def per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> LatentAffine:
    """Return posterior = latents * std + mean, channel by channel."""
    return LatentAffine(torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1))


def convert_with(
    module: ModuleType, family: Family, path: Path, options: ImportOptions
) -> Checkpoint:
    """Read a file by its family's module and return it as a checkpoint.

    Raises:
        CheckpointError: another layout, keys or shapes that do not fit, or a decoder that does not.
        InvalidInput: options that do not fit the family or the file.
    """
    content = read_pickled(path)
    tensors = Tensors(chosen_state(module, content, path, options), path, module.WHOSE)
    imported: Imported = module.read(tensors, options)
    tensors.finish()
    config = imported.generator.config
    vae = _decoder(imported, options, module.TRAINED_ON)
    side_px = config.size * (upscale(vae) if vae else 1)
    size = module.SIZES.get((config.depth, config.width), f"{config.depth}x{config.width}-")
    usual = f"{family.name}-{size}{config.patch}{imported.size_suffix}-{side_px}"
    return Checkpoint(
        name=options.name or usual,
        generator=imported.generator,
        vae=vae,
        class_names=read_class_names(options.class_names, config.num_classes),
        training=source_of(module, family, path, options, imported, usual, vae),
        affine=imported.affine,
    )


def chosen_state(
    module: ModuleType, content: dict[str, Any], path: Path, options: ImportOptions
) -> dict[str, Tensor]:
    """Return the weights that were asked for, float32, under the names that the family's module knows.

    Raises:
        CheckpointError: the file has none of that name.
        InvalidInput: files of this family have one kind of weights alone.
    """
    if options.weights not in module.WEIGHTS:
        raise InvalidInput(
            f"Files of {module.WHOSE} hold one set of weights.", hint="leave --weights away"
        )
    key = module.WEIGHTS[options.weights]
    rename = getattr(module, "own_names", as_it_is)
    if key is None:
        return as_state(rename(content), path.name)
    key = key if key in content else getattr(module, "OTHER_NAMES", {}).get(key, key)
    if key not in content:
        raise CheckpointError(
            f"{path.name} is not {module.WHOSE}: it has no {key!r}, but {', '.join(map(repr, sorted(content)[:5]))}.",
            hint="cat-serve import --list shows the families",
        )
    return as_state(rename(content[key]), f"{key!r} in {path.name}")


def as_it_is(state: object) -> object:
    """Return a state dict whose names are those that the family's module knows."""
    return state


def source_of(
    module: ModuleType,
    family: Family,
    path: Path,
    options: ImportOptions,
    imported: Imported,
    usual: str,
    vae: Vae | None,
) -> dict[str, Any]:
    """Return what checkpoint, manifest and `/models` say of where the weights came from."""
    affine = imported.affine
    decoder = "none: the generator makes pixels"
    if vae is not None:
        where = options.vae.name if options.vae else ""
        decoder = f"{where}, sha256 {vae_sha256(vae)}"
    source: dict[str, Any] = {
        "family": family.title,
        "imported": {"file": path.name, "sha256": sha256_of(path), "weights": options.weights},
        "licence": family.licence,
        "repository": family.repository,
        "folded": dict(imported.folded),
        "decoder": decoder,
        "latents": "pixels" if affine is None else f"{affine.kind} scale",
        "z_scale": imported.generator.config.z_scale,
    }
    if usual in module.PUBLISHED:
        source["published"] = {
            "metric": "FID-50K, one step",
            "value": module.PUBLISHED[usual],
            "source": family.paper,
        }
    return source


def _decoder(imported: Imported, options: ImportOptions, trained_on: str) -> Vae | None:
    config = imported.generator.config
    if imported.affine is None:
        if options.vae is not None:
            raise InvalidInput(
                "This family makes pixels and has no decoder.", hint="leave --vae away"
            )
        return None
    if options.vae is None:
        raise InvalidInput(
            "cat-serve import needs vae for this family: the file holds no decoder.",
            hint=f"--vae FOLDER: it was trained on the latents of {trained_on}",
        )
    vae = load_ldm_vae(options.vae) if options.vae.is_file() else load_vae(options.vae)
    if vae.config.latent_channels != config.channels:
        raise InvalidInput(
            f"{options.vae} has latents of {vae.config.latent_channels} channels, the generator of {config.channels}.",
            hint=f"it was trained on the latents of {trained_on}",
        )
    return vae
