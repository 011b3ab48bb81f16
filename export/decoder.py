"""The same generator behind another decoder: a checkpoint of its own, since its images are others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.model.config import require_model_name

if TYPE_CHECKING:
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.vae import Vae

COMPARED_IMAGES = 4


def with_decoder(path: Path, decoder: Path, name: str) -> Path:
    """Write `name`.safetensors beside a checkpoint: its generator, decoded by the VAE in `decoder`.

    A tiny decoder (diffusers' AutoencoderTiny, as TAESD is) costs a hundredth of SD-VAE's; whether its images are as
    good is for `training.evaluate` to measure. How far they are from the replaced decoder's goes into the description.

    Returns:
        The new checkpoint.

    Raises:
        CheckpointError: one of the two cannot be read, or they have different latents.
        InvalidInput: the name is no model's, or the checkpoint's own.
    """
    from cat_serve.files import sha256_of
    from cat_serve.model.checkpoint import load_checkpoint, save_checkpoint
    from cat_serve.model.vae import load_decoder, upscale, vae_sha256

    require_model_name(name)
    old = load_checkpoint(path)
    out = path.with_name(f"{name}.safetensors")
    if name == old.name or out.resolve() == path.resolve():
        raise InvalidInput(
            f"{name!r} is the model with the decoder it has.",
            hint="another decoder is another model",
        )
    if old.vae is None:
        raise InvalidInput(f"{old.name} makes pixels: it has no decoder to replace.")
    vae = load_decoder(decoder)
    channels, wanted = vae.config.latent_channels, old.vae.config.latent_channels
    if channels != wanted or upscale(vae) != upscale(old.vae):
        raise CheckpointError(
            f"{decoder} decodes {channels} channels to {upscale(vae)} px a cell, {path.name} has {wanted} channels "
            f"and {upscale(old.vae)} px.",
            hint="take a decoder that was made for the VAE that the generator was trained with",
        )
    made: dict[str, Any] = {
        "from_checkpoint_sha256": sha256_of(path),
        "decoder": {
            "kind": type(vae).__name__,
            "folder": decoder.name,
            "sha256": vae_sha256(vae),
            "psnr_to_replaced_db": psnr_between(old, replaced(old, vae)),
        },
    }
    new = dataclasses.replace(replaced(old, vae), name=name, training=old.training | made)
    save_checkpoint(out, new)
    return out


def replaced(old: Checkpoint, vae: Vae) -> Checkpoint:
    """Return a checkpoint with another decoder; the scale of its latents is kept.

    A tiny decoder takes latents as SD-VAE's were scaled, so a scale to the posterior is followed by that factor.
    """
    from cat_serve.model.vae import TINY, LatentAffine

    affine = old.affine
    was, now = (type(v).__name__ == TINY for v in (old.vae, vae))
    if affine is not None and old.vae is not None and was != now:
        factor = float((vae if was else old.vae).config.scaling_factor)
        factor = 1 / factor if was else factor
        affine = LatentAffine(affine.mean * factor, affine.std * factor)
    return dataclasses.replace(old, vae=vae, affine=affine)


def psnr_between(checkpoint: Checkpoint, other: Checkpoint) -> float | None:
    """Return the PSNR (dB) of a few images of two checkpoints; None if they are equal."""
    from cat_serve.model.fused import FusedModel
    from export.parity import compare
    from export.probes import many_images

    rows = many_images(len(checkpoint.class_names), COMPARED_IMAGES)
    batch = rows.batch(checkpoint.generator.config.z_shape)
    a, b = (FusedModel.from_checkpoint(form).run(batch) for form in (checkpoint, other))
    psnr_db: float | None = compare(a, b).to_dict()["psnr_db"]
    return psnr_db
