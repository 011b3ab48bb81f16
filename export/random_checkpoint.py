"""Write an ImageNet-shaped checkpoint of RANDOM weights: to try export and service before real weights exist.

    python -m export.random_checkpoint --size S --vae path/to/sd-vae-ft-mse --out checkpoints
    python -m export.random_checkpoint --family pmf --size H --image-size 512 --out checkpoints

The model is called cat-random-<px>, or by its family, and its manifest says that its weights are random. Its images are noise. The
decoder is a real one if --vae names a folder that diffusers wrote (AutoencoderKL or AutoencoderTiny), else random
too, in SD-VAE's shape or, with --tiny, in that of its small stand-in (TAESD).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.model.config import SIZES
from export.random_families import FAMILIES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.config import GeneratorConfig
    from cat_serve.model.vae import Vae

SD_VAE_WIDTHS = (128, 256, 512, 512)
SD_VAE_SCALING = 0.18215
MEAN_OF = 16
RANDOM_TINY_GAIN = 10
CHANGES = ("depth", "width", "heads")
CAT = "cat"


def random_vae(widths: tuple[int, ...], image_size: int) -> AutoencoderKL:
    """Make a VAE of random weights that differs from SD-VAE in its widths alone."""
    from diffusers import AutoencoderKL

    levels = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=image_size,
        scaling_factor=SD_VAE_SCALING,
    ).eval()


def random_tiny() -> AutoencoderTiny:
    """Make a tiny autoencoder of random weights: diffusers' defaults are TAESD's shape.

    Its last layer is widened, or every image would be black.
    """
    import torch
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny().eval()
    with torch.no_grad():
        last = vae.decoder.layers[-1]
        last.weight.mul_(RANDOM_TINY_GAIN)
        last.bias.fill_(0.5)
    return vae


def random_checkpoint(
    config: GeneratorConfig, vae: Vae, image_size: int, vae_is: str, seed: int
) -> Checkpoint:
    """Make a checkpoint of random generator weights, its class means those of these weights.

    Args:
        vae_is: what the manifest says of the decoder's weights.
    """
    import torch

    from cat_serve.classes import imagenet_names
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.generator import Generator

    torch.manual_seed(seed)
    generator = Generator(config).eval().requires_grad_(False)
    y = torch.arange(config.num_classes)
    generator.w_avg.copy_(
        sum(generator.mapping(torch.randn(len(y), config.z_dim), y) for _ in range(MEAN_OF))
        / MEAN_OF
    )
    training = {
        "weights": "random",
        "note": "never trained: the generator's weights are random, and its images are noise",
        "decoder": vae_is,
        "seed": seed,
    }
    return Checkpoint(f"cat-random-{image_size}", generator, vae, imagenet_names(), training)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.random_checkpoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--family", choices=(CAT, *FAMILIES), default=CAT,
        help="whose architecture (default: %(default)s); pmf makes pixels and has no decoder")  # fmt: skip
    add("--size", choices=SIZES, default="S", help="of the generator (default: %(default)s)")
    for name in CHANGES:
        add(f"--{name}", type=int, help=f"instead of the size's {name}")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--vae", type=Path,
        help="folder of a diffusers AutoencoderKL or AutoencoderTiny (default: random weights)")  # fmt: skip
    add("--tiny", action="store_true", help="the random decoder is a tiny one")
    add("--vae-widths", type=int, nargs="+", default=SD_VAE_WIDTHS, metavar="N",
        help="block_out_channels of the random decoder (default: SD-VAE's, 128 256 512 512)")  # fmt: skip
    add = parser.add_argument
    add("--image-size", type=int, default=256, metavar="PX")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("checkpoints"), help="folder (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="torch")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint that the arguments describe; return what to report."""
    from cat_serve.model.checkpoint import parameter_count, save_checkpoint

    if arguments.family != CAT and FAMILIES[arguments.family].is_pixels:
        require_no_decoder(arguments)
        vae, vae_is = None, "none"
    else:
        vae, vae_is = decoder_of(arguments)
    checkpoint = (
        cat_of(arguments, vae, vae_is)
        if arguments.family == CAT
        else family_of(arguments, vae, vae_is)
    )
    path = arguments.out / f"{checkpoint.name}.safetensors"
    save_checkpoint(path, checkpoint)
    return {
        "checkpoint": str(path),
        "weights": "random",
        "decoder": vae_is,
        "generator_parameters": parameter_count(checkpoint.generator),
        "decoder_parameters": parameter_count(vae.decoder) if vae else 0,
    }


def require_no_decoder(arguments: argparse.Namespace) -> None:
    """Refuse a decoder for a family that makes pixels.

    Raises:
        InvalidInput: one was asked for.
    """
    from cat_serve.errors import InvalidInput

    if arguments.vae is not None or arguments.tiny:
        raise InvalidInput(
            f"The family {arguments.family} makes pixels and has no decoder.",
            hint="leave --vae and --tiny away",
        )


def decoder_of(arguments: argparse.Namespace) -> tuple[Vae, str]:
    """Return the decoder that was asked for, and what the manifest says of it."""
    import torch

    from cat_serve.model.vae import load_decoder, vae_sha256

    if arguments.vae is not None:
        vae = load_decoder(arguments.vae)
        return vae, f"{arguments.vae.name}, sha256 {vae_sha256(vae)}"
    torch.manual_seed(arguments.seed)
    if arguments.tiny:
        return random_tiny(), "random"
    return random_vae(tuple(arguments.vae_widths), arguments.image_size), "random"


def cat_of(arguments: argparse.Namespace, vae: Vae | None, vae_is: str) -> Checkpoint:
    """Make a CAT model for a decoder."""
    from cat_serve.model.config import generator_preset

    assert vae is not None
    config = generator_preset(
        arguments.size,
        latent_size=latent_size(arguments, vae),
        latent_channels=vae.config.latent_channels,
        **changes_of(arguments),
    )
    return random_checkpoint(config, vae, arguments.image_size, vae_is, arguments.seed)


def family_of(arguments: argparse.Namespace, vae: Vae | None, vae_is: str) -> Checkpoint:
    """Make another family's model, for a decoder or of pixels."""
    from cat_serve.classes import IMAGENET_CLASSES, imagenet_names
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.config import generator_preset
    from export.random_families import affine_of, random_generator

    family, shape = FAMILIES[arguments.family], generator_preset(arguments.size)
    sizes = {"depth": shape.depth, "width": shape.width, "heads": shape.heads} | changes_of(
        arguments
    )
    channels = 3 if vae is None else int(vae.config.latent_channels)
    side = arguments.image_size if vae is None else latent_size(arguments, vae)
    config = family.config(sizes, side, channels, IMAGENET_CLASSES)
    training = {
        "weights": "random",
        "note": f"never trained: {family.title}'s architecture with random weights, and its images are noise",
        "family": family.title,
        "decoder": vae_is,
        "seed": arguments.seed,
    }
    return Checkpoint(
        name=f"{arguments.family}-random-{arguments.image_size}",
        generator=random_generator(config, arguments.seed),
        vae=vae,
        class_names=imagenet_names(),
        training=training,
        affine=None if vae is None else affine_of(family, config),
    )


def changes_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Return what replaces the size's own."""
    return {n: getattr(arguments, n) for n in CHANGES if getattr(arguments, n) is not None}


def latent_size(arguments: argparse.Namespace, vae: Vae) -> int:
    """Return the side of the latents.

    Raises:
        InvalidInput: the images have no whole latents.
    """
    from cat_serve.errors import InvalidInput
    from cat_serve.model.vae import upscale

    factor = upscale(vae)
    if arguments.image_size % factor:
        raise InvalidInput(
            f"Images of {arguments.image_size} px have no whole latents: this VAE divides by {factor}.",
            hint=f"--image-size must be a multiple of {factor}",
        )
    return int(arguments.image_size // factor)


if __name__ == "__main__":
    sys.exit(main())
