"""The same generator behind another decoder: a checkpoint of its own, since its images are others."""

from __future__ import annotations

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
    from cat_serve.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from cat_serve.model.vae import load_decoder, upscale, vae_sha256

    require_model_name(name)
    old = load_checkpoint(path)
    out = path.with_name(f"{name}.safetensors")
    if name == old.name or out.resolve() == path.resolve():
        raise InvalidInput(
            f"{name!r} is the model with the decoder it has.",
            hint="another decoder is another model",
        )
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
            "psnr_to_replaced_db": psnr_between(old, vae),
        },
    }
    save_checkpoint(out, Checkpoint(name, old.generator, vae, old.class_names, old.training | made))
    return out


def psnr_between(checkpoint: Checkpoint, vae: Vae) -> float | None:
    """Return the PSNR (dB) of a few images decoded by `vae` and by the checkpoint's own; None if they are equal."""
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.fused import FusedModel
    from export.parity import compare
    from export.probes import many_images

    rows = many_images(len(checkpoint.class_names), COMPARED_IMAGES)
    batch = rows.batch((checkpoint.generator.config.z_dim,))
    other = Checkpoint(checkpoint.name, checkpoint.generator, vae, checkpoint.class_names)
    a, b = (FusedModel.from_checkpoint(form).run(batch) for form in (checkpoint, other))
    psnr_db: float | None = compare(a, b).to_dict()["psnr_db"]
    return psnr_db
