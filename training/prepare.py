"""Encode a data set once: the VAE's posterior moments in shards, so that training never runs the encoder.

    python -m training.prepare --vae checkpoints/fashion-32.vae --out data/fashion-32
    python -m training.prepare --images FOLDER --size 256 --vae sd-vae-ft-mse --out data/mine
    python -m training.prepare --images ILSVRC2012_img_train.tar --size 256 --vae sd-vae --out data/imagenet --dry-run

Images come as a folder with one sub-folder per class, or in tars. Shards are written whole and kept: an interrupted
run goes on with the first shard that is missing. A broken image is named and left out. --dry-run writes nothing and
says how many images, bytes and hours.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.shards import Preparation, begin, tidy
from training.sources import MAX_BROKEN, Source, add_source_arguments, open_source

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

MOST_IN_A_BATCH = 100
MOVABLE = (
    "root",
    "broken",
    "content",
    "duplicates",
)  # of an index's images: no part of what a source describes


def keep_finished(out: Path, vae_hash: str, source: Source) -> bool:
    """Tell whether `out` holds whole data made by this VAE from these photographs.

    A folder that was moved, or whose classes have other names, only has its index mended.
    """
    from cat_serve.errors import DataError
    from training.data import Latents

    try:
        index = Latents(out).index
    except DataError:  # not there, or damaged: made anew
        return False
    made_of = (index.vae_sha256, index.count + index.images.get("broken", 0))
    described, found = _identity(source.description), _identity(index.images)
    if made_of != (vae_hash, len(source)) or described != found:
        return False
    mended = replace(
        index, class_names=source.class_names, images={**index.images, **source.description}
    )
    if mended != index:
        mended.save(out)
    tidy(out)  # killed after the index was written, a run leaves its notes
    return True


def _identity(images: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in images.items() if key not in MOVABLE}


def prepare(
    vae_path: Path,
    source: Source,
    out: Path,
    batch_size: int | None = None,
    max_broken: float = MAX_BROKEN,
    device: str = "cpu",
) -> None:
    """Write shards, labels and, last of all, the index. A finished folder is left as it is.

    Args:
        batch_size: photographs that go through the VAE at a time; by default what fits.
        max_broken: the share of photographs that may be broken; they are named and left out.
        device: where the VAE runs.

    Raises:
        DataError: more are broken, or all of a class.
        InvalidInput: photographs of a side that the VAE cannot halve.
        MissingDependency: there is no such device.
    """
    from cat_serve.model.checkpoint import open_vae
    from cat_serve.model.vae import vae_sha256
    from training.vae import batch_size_for

    vae = open_vae(vae_path)
    vae_hash = vae_sha256(vae)
    require_whole_cells(vae, source.size_px)
    if keep_finished(out, vae_hash, source):
        return
    vae = vae.to(open_device(device))
    begin(out, vae_hash, len(source), _identity(source.description))
    batch_size = batch_size or batch_size_for(source.size_px, MOST_IN_A_BATCH)
    work = Preparation(vae, vae_hash, source, out, batch_size, max_broken)
    work.run()
    work.finish()


def require_whole_cells(vae: AutoencoderKL, size_px: int) -> None:
    """Refuse a side that the VAE's halvings do not divide."""
    from cat_serve.errors import InvalidInput
    from cat_serve.model.vae import upscale

    if size_px % (cell := upscale(vae)):
        raise InvalidInput(
            f"The VAE makes one latent of {cell} x {cell} px, and {size_px} px do not divide by {cell}.",
            hint=f"give --size {max(cell, size_px // cell * cell)}",
        )


def open_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        InvalidInput: no such kind of device.
        MissingDependency: this machine has none.
    """
    import torch

    from cat_serve.errors import InvalidInput, MissingDependency

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"No device {name!r}.", hint="cpu, cuda, or cuda:1") from error
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise MissingDependency(f"This machine has no device {name!r}: {reason}", hint="give --device cpu") from error  # fmt: skip
    return device


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_source_arguments(parser)
    parser.add_argument(
        "--vae",
        type=Path,
        required=True,
        help="VAE: diffusers' folder, a hub name, or a checkpoint",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--batch-size", type=int, help="images that go through the VAE at a time")
    parser.add_argument("--device", default="cpu", help="where the VAE runs (default: %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: read and encode a sample, and say images, bytes and time",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Encode the photographs that the arguments name; return what to report."""
    from cat_serve.errors import InvalidInput
    from training.health import warnings_about

    a = arguments
    if a.batch_size is not None and a.batch_size < 1:
        raise InvalidInput(f"--batch-size {a.batch_size} must be at least 1.")
    source = open_source(a)
    warnings = warnings_about(source)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        if a.dry_run:
            return _dry_run(a, source) | {"warnings": warnings}
        prepare(a.vae, source, a.out, a.batch_size, a.max_broken, a.device)
    finally:
        source.close()
    return _report(a.out, len(source)) | {"warnings": warnings}


def _dry_run(arguments: argparse.Namespace, source: Source) -> dict[str, object]:
    from cat_serve.model.checkpoint import open_vae
    from training.estimate import estimate
    from training.vae import batch_size_for

    vae = open_vae(arguments.vae)
    require_whole_cells(vae, source.size_px)
    batch_size = arguments.batch_size or batch_size_for(source.size_px, MOST_IN_A_BATCH)
    found = estimate(vae.to(open_device(arguments.device)), source, arguments.out, batch_size)
    found.say()
    return found.report()


def _report(out: Path, total: int) -> dict[str, object]:
    from training.data import Index

    index = Index.load(out)
    broken = index.images.get("broken", 0)
    if broken:
        print(
            f"{broken} of {total} photographs are broken and left out; images.json names them",
            file=sys.stderr,
        )
    return {
        "out": str(out), "count": index.count, "classes": len(index.class_names), "broken": broken,
        "duplicates": index.images.get("duplicates", 0), "fingerprint": index.fingerprint,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
