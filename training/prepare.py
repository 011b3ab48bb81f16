"""Encode a data set once: the VAE's posterior moments in shards, so that training never runs the encoder.

    python -m training.prepare --vae checkpoints/fashion-32.vae --out data/fashion-32

Shards are written whole and kept: an interrupted run goes on with the first shard that is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHARD_SIZE = 10_000
PROGRESS_NAME = "progress.json"


def encode(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Return posterior moments, mean then standard deviation: uint8 [B, H, W, 3] -> float16 [B, 2C, h, w]."""
    import torch

    from training.train_vae import to_unit

    with torch.no_grad():
        posterior = vae.encode(to_unit(images)).latent_dist
    return torch.cat([posterior.mean, posterior.std], dim=1).numpy().astype(np.float16)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one .npy file in one step."""
    from cat_serve.files import written_whole

    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def is_finished(out: Path, vae_hash: str, count: int, source: dict[str, object]) -> bool:
    """Tell whether `out` holds whole data made by this VAE from these photographs."""
    from cat_serve.errors import DataError
    from training.data import Latents

    try:
        index = Latents(out).index
    except DataError:  # not there, or damaged: made anew
        return False
    return (index.vae_sha256, index.count, index.images) == (vae_hash, count, source)


def begin(out: Path, settings: dict[str, object]) -> None:
    """Keep the shards of an interrupted run with the same settings; remove those of any other."""
    from cat_serve.files import write_text
    from training.data import INDEX_NAME

    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX_NAME).unlink(missing_ok=True)
    progress = out / PROGRESS_NAME
    wanted = json.dumps(settings)
    if not progress.exists() or progress.read_text(encoding="utf-8") != wanted:
        for stale in out.glob("latents-*.npy"):
            stale.unlink()
        write_text(progress, wanted)


def prepare(
    vae_path: Path, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...],
    source: dict[str, object], out: Path, batch_size: int = 100,
) -> None:  # fmt: skip
    """Write shards, labels and, last of all, the index. A finished folder is left as it is.

    Args:
        images: uint8 [N, H, W, 3]; labels: int64 [N].
        source: where the photographs are, so that others can find the photograph of a latent.
    """
    from tqdm import tqdm

    from cat_serve.files import sha256_of
    from cat_serve.model.checkpoint import open_vae
    from cat_serve.model.decoder import latent_affine, vae_sha256
    from training.data import LABELS_NAME, Index

    vae = open_vae(vae_path)
    vae_hash = vae_sha256(vae)
    latents_mean, latents_std = latent_affine(vae)
    count = len(images)
    if is_finished(out, vae_hash, count, source):
        return
    names = [f"latents-{i:05d}.npy" for i in range(-(-count // SHARD_SIZE))]
    begin(
        out,
        {"vae_sha256": vae_hash, "count": count, "shard_size": SHARD_SIZE, "source": source},
    )
    missing = [name for name in names if not (out / name).exists()]
    done = min(count, (len(names) - len(missing)) * SHARD_SIZE)
    progress = tqdm(total=count, initial=done, unit="img", desc="prepare")
    for name in missing:
        first = int(name[8:13]) * SHARD_SIZE
        parts = []
        for start in range(first, min(first + SHARD_SIZE, count), batch_size):
            stop = min(start + batch_size, first + SHARD_SIZE)
            parts.append(encode(vae, images[start:stop]))
            progress.update(len(parts[-1]))
        write_array(out / name, np.concatenate(parts))
    progress.close()
    write_array(out / LABELS_NAME, labels.astype(np.int64))
    made_from = json.dumps([vae_hash, sha256_of(out / LABELS_NAME), source])
    Index(
        vae_sha256=vae_hash,
        latents_mean=latents_mean,
        latents_std=latents_std,
        class_names=class_names,
        latent_channels=int(vae.config.latent_channels),
        latent_size=images.shape[1] // 2 ** (len(vae.config.block_out_channels) - 1),
        count=count,
        shards=tuple(names),
        images=source,
        fingerprint=hashlib.sha256(made_from.encode()).hexdigest(),
    ).save(out)
    (out / PROGRESS_NAME).unlink()


def build_parser() -> argparse.ArgumentParser:
    from training.fashion_mnist import DEFAULT_FOLDER

    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="Fashion-MNIST folder")
    parser.add_argument(
        "--vae", type=Path, required=True, help="VAE: diffusers' folder, or a checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Encode the photographs that the arguments name; return what to report."""
    from training.data import Index
    from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32

    source: dict[str, object] = {
        "dataset": "fashion-mnist", "split": "train", "licence": "MIT", "layout": "to_rgb32",
    }  # fmt: skip
    images, labels = load_split("train", arguments.data)
    prepare(arguments.vae, to_rgb32(images), labels, CLASS_NAMES, source, arguments.out)
    index = Index.load(arguments.out)
    return {"out": str(arguments.out), "count": index.count, "fingerprint": index.fingerprint}


if __name__ == "__main__":
    sys.exit(main())
