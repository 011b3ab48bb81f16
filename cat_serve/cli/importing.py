"""`cat-serve import`: the published weights of another one-step generator -> a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

# of `ImportOptions`: type, metavar, what it is
FAMILY_FLAGS: dict[str, tuple[type, str, str]] = {
    "heads": (int, "N", "attention heads, where the width is that of no published size"),
    "repeats": (int, "N", "how often the deep models run their blocks (2: 56 layers, 4: 112)"),
    "omega": (float, "W", "guidance, at least 1 (default: the one that was published with the size)"),
    "t_min": (float, "T", "start of the guidance interval (default: likewise)"),
    "t_max": (float, "T", "its end (default: likewise)"),
    "noise_scale": (float, "S", "of training's noise (default: the published size's)"),
    "encoder_blocks": (int, "N", "how many blocks see t (default: 20 of 28)"),
    "latent_stats": (Path, "FILE", "latents_stats.pt, mean and std of the latents"),
}  # fmt: skip


def add_to(commands: Any) -> None:
    """Add the command."""
    from cat_serve.importers import FAMILIES, Weights

    parser = commands.add_parser(
        "import",
        help="make a checkpoint of the published weights of another one-step generator",
        description="Make a checkpoint of the published weights of another one-step generator. Nothing is downloaded, and "
        "nothing in the file is executed.",
    )
    add = parser.add_argument
    add(
        "--list", action="store_true", help="show the families, and where their files are to be had"
    )
    add("family", nargs="?", metavar="FAMILY", help=", ".join(FAMILIES))
    add("file", nargs="?", type=Path, metavar="FILE", help="as it was downloaded")
    add("--out", type=Path, metavar="CHECKPOINT", help="file to write (.safetensors)")
    add(
        "--vae", type=Path, metavar="FOLDER",
        help="decoder: diffusers' folder of stabilityai/sd-vae-ft-mse or -ema, a hub name in the local cache, or a file in "
        "latent diffusion's layout (VA-VAE)",
    )  # fmt: skip
    add("--name", help="of the model (default: family, size and pixels)")
    add(
        "--class-names", type=Path, metavar="FILE", help="one a line, where they are not ImageNet's"
    )
    add(
        "--weights", choices=get_args(Weights), default="ema",
        help="the averaged ones, or those of the last step (default: %(default)s)",
    )  # fmt: skip
    _add_family_flags(parser)
    parser.set_defaults(run=run)


def _add_family_flags(parser: argparse.ArgumentParser) -> None:
    """Add what means something for some families alone."""
    from cat_serve.importers import FAMILIES

    group = parser.add_argument_group("for some families")
    for name, (kind, metavar, text) in FAMILY_FLAGS.items():
        whose = ", ".join(family.name for family in FAMILIES.values() if name in family.options)
        if whose:
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, type=kind, metavar=metavar, help=f"{whose}: {text}")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; the last line of stdout is JSON."""
    from cat_serve.commands import run_command

    if arguments.list:
        list_families()
        return 0
    return run_command(lambda: work(arguments), extra="torch")


def list_families() -> None:
    """Print a table, its columns separated by tabs."""
    from cat_serve.importers import FAMILIES

    print("family", "fid_as_published", "licence", "repository", "weights", "paper", "needs", sep="\t")  # fmt: skip
    for family in FAMILIES.values():
        print(
            family.name, family.fid, family.licence, family.repository, family.weights, family.paper,
            family.needs, sep="\t",
        )  # fmt: skip


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert the file, write the checkpoint, and return what to report."""
    from cat_serve.errors import InvalidInput
    from cat_serve.importers import FAMILIES, ImportOptions, convert
    from cat_serve.model.checkpoint import parameter_count, save_checkpoint
    from cat_serve.model.config import require_model_name

    wanted = ("family", "file", "out")
    if missing := [name for name in wanted if getattr(arguments, name) is None]:
        raise InvalidInput(
            f"cat-serve import needs {' and '.join(missing)}.",
            hint="cat-serve import gat FILE --vae FOLDER --out CHECKPOINT.safetensors; --list shows the families",
        )
    if arguments.out.suffix != ".safetensors":
        raise InvalidInput(f"--out {arguments.out} must end in .safetensors.")
    if arguments.name is not None:
        require_model_name(arguments.name)
    options = ImportOptions(
        vae=arguments.vae,
        name=arguments.name,
        class_names=arguments.class_names,
        weights=arguments.weights,
        **{name: getattr(arguments, name, None) for name in FAMILY_FLAGS},
    )
    checkpoint = convert(arguments.family, arguments.file, options)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(arguments.out, checkpoint)
    source = checkpoint.training
    return {
        "checkpoint": str(arguments.out),
        "model": checkpoint.name,
        "family": arguments.family,
        "licence": FAMILIES[arguments.family].licence,
        "source_sha256": source["imported"]["sha256"],
        "published": source.get("published"),
        "folded": source.get("folded", {}),
        "classes": len(checkpoint.class_names),
        "generator_parameters": parameter_count(checkpoint.generator),
        "next": f"python -m export.onnx {arguments.out}",
    }
