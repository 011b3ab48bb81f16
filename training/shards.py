"""Shards of posterior moments: encoded one after another, each written whole, broken photographs left out."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.health import Duplicates
from training.sources import Source, require_few_broken

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from tqdm import tqdm

SHARD_SIZE = 10_000
PROGRESS_NAME = "progress.json"
FILES_NAME = "images.json"


def encode(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Return posterior moments, mean then standard deviation: uint8 [B, H, W, 3] -> float16 [B, 2C, h, w]."""
    import torch

    from training.vae import to_unit

    with torch.no_grad():
        posterior = vae.encode(to_unit(images).to(vae.device)).latent_dist
    moments = torch.cat([posterior.mean, posterior.std], dim=1)
    return moments.cpu().numpy().astype(np.float16)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one .npy file in one step."""
    from cat_serve.files import written_whole

    with written_whole(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def begin(out: Path, vae_hash: str, count: int, source: dict[str, object]) -> None:
    """Keep the shards of an interrupted run with the same settings; remove those of any other."""
    from cat_serve.files import write_text
    from training.data import INDEX_NAME

    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX_NAME).unlink(missing_ok=True)
    progress = out / PROGRESS_NAME
    for left in out.glob(".*.tmp"):  # by a process that was killed while it wrote
        left.unlink()
    wanted = json.dumps(
        {"vae_sha256": vae_hash, "count": count, "shard_size": SHARD_SIZE, "source": source}
        | {"notes": 2}
    )
    if not progress.exists() or progress.read_text(encoding="utf-8") != wanted:
        for pattern in ("latents-*.npy", "shard-*.json"):
            for stale in out.glob(pattern):
                stale.unlink()
        write_text(progress, wanted)


@dataclass
class Shard:
    """What is noted of a shard beside its moments, until the index is written.

    Attributes:
        broken: index of a photograph -> why it is not in the shard.
        hashes: of the bytes of each of its files, broken ones too; empty where they could not be read.
    """

    broken: dict[int, str] = field(default_factory=dict)
    hashes: list[bytes] = field(default_factory=list)

    @property
    def content(self) -> str:
        """One hash over all its files."""
        return hashlib.sha256(b"".join(self.hashes)).hexdigest()

    def save(self, path: Path) -> None:
        from cat_serve.files import write_text

        hashes = [each.hex() for each in self.hashes]
        write_text(path, json.dumps({"broken": list(self.broken.items()), "hashes": hashes}))

    @classmethod
    def load(cls, path: Path) -> Shard:
        values = json.loads(path.read_text(encoding="utf-8"))
        broken = {int(index): reason for index, reason in values["broken"]}
        return cls(broken, [bytes.fromhex(each) for each in values["hashes"]])


@dataclass
class Preparation:
    """One data set on its way into one folder.

    Args:
        batch_size: photographs that go through the VAE at a time.
        max_broken: the share of photographs that may be broken.
    """

    vae: AutoencoderKL
    vae_hash: str
    source: Source
    out: Path
    batch_size: int
    max_broken: float
    shards: list[Shard] = field(default_factory=list)

    def name(self, index: int) -> str:
        """Return what a photograph is called in messages."""
        return self.source.files[index] if self.source.files else f"number {index}"

    def broken(self) -> dict[str, str]:
        """Return name -> reason of all broken photographs so far."""
        parts = (shard.broken.items() for shard in self.shards)
        return {self.name(index): reason for part in parts for index, reason in part}

    def run(self) -> None:
        """Encode every shard that is missing.

        Raises:
            DataError: too many photographs are broken, or all those of a class.
        """
        from tqdm import tqdm

        total = len(self.source)
        with tqdm(total=total, unit="img", desc="prepare") as progress:
            for start in range(0, total, SHARD_SIZE):
                indices = np.arange(start, min(start + SHARD_SIZE, total))
                moments_path, note_path = _shard_paths(self.out, start // SHARD_SIZE)
                if moments_path.exists() and note_path.exists():
                    self.shards.append(Shard.load(note_path))
                    progress.update(len(indices))
                    progress.initial = progress.n  # the rate is that of this run
                else:
                    self.shards.append(Shard())
                    moments = self.encode_shard(indices, progress)
                    self.shards[-1].save(note_path)
                    write_array(moments_path, moments)
                self._require_all_classes(int(indices[-1]) + 1)

    def encode_shard(self, indices: np.ndarray, progress: tqdm) -> np.ndarray:
        """Return the moments of the readable photographs, float16 [n, 2C, h, w], and note the others."""
        shard = self.shards[-1]
        parts: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for index, photograph in zip(indices.tolist(), self.source.read(indices), strict=True):
            shard.hashes.append(photograph.sha256)
            if photograph.pixels is None:
                shard.broken[index] = photograph.reason
                progress.write(f"broken: {self.name(index)}: {photograph.reason}", file=sys.stderr)
                require_few_broken(self.broken(), len(self.source), self.max_broken)
            else:
                waiting.append(photograph.pixels)
            if waiting and (len(waiting) == self.batch_size or index == indices[-1]):
                parts.append(encode(self.vae, np.stack(waiting)))
                waiting.clear()
            progress.update()
        return np.concatenate(parts) if parts else np.zeros(0, np.float16)

    def _require_all_classes(self, seen: int) -> None:
        """Refuse a class that has been seen whole without one readable photograph."""
        from cat_serve.errors import DataError

        labels, count = self.source.labels, len(self.source.class_names)
        broken = [index for shard in self.shards for index in shard.broken]
        readable = np.bincount(np.delete(labels[:seen], broken), minlength=count)
        to_come = np.bincount(labels[seen:], minlength=count)
        if empty := np.flatnonzero(readable + to_come == 0).tolist():
            raise DataError(
                f"The class {self.source.class_names[empty[0]]!r} has no readable photograph.",
                hint="mend its images, or remove its folder",
            )

    def finish(self) -> None:
        """Write labels, the list of files, and last of all the index."""
        from cat_serve.files import sha256_of
        from cat_serve.model.vae import latent_affine, upscale
        from training.data import LABELS_NAME, Index

        source, config, broken = self.source, self.vae.config, self.broken()
        kept = np.delete(np.arange(len(source)), [i for shard in self.shards for i in shard.broken])
        write_array(self.out / LABELS_NAME, source.labels[kept].astype(np.int64))
        images = dict(source.description)
        if source.files is not None:
            contents = json.dumps([shard.content for shard in self.shards])
            images["content"] = hashlib.sha256(contents.encode()).hexdigest()
            images["broken"] = len(broken)
            _write_files(self.out, source, kept, broken)
        made_from = {k: v for k, v in images.items() if k not in ("root", "listing")}
        identity = json.dumps([self.vae_hash, sha256_of(self.out / LABELS_NAME), made_from])
        if source.files is not None:
            images["duplicates"] = self._warn_of_duplicates()
        mean, std = latent_affine(self.vae)
        paths = [_shard_paths(self.out, number) for number in range(len(self.shards))]
        filled = set((kept // SHARD_SIZE).tolist())
        Index(
            vae_sha256=self.vae_hash,
            latents_mean=mean,
            latents_std=std,
            class_names=source.class_names,
            latent_channels=int(config.latent_channels),
            latent_size=source.size_px // upscale(self.vae),
            count=len(kept),
            shards=tuple(paths[number][0].name for number in sorted(filled)),
            images=images,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        ).save(self.out)
        tidy(self.out)

    def _warn_of_duplicates(self) -> int:
        """Name the photographs that come twice; return how many."""
        contents = [each for shard in self.shards for each in shard.hashes]
        found = Duplicates.find(contents, self.source.labels)
        for warning in found.warnings(self.source.files or ()):
            print(f"warning: {warning}", file=sys.stderr)
        return len(found.pairs)


def tidy(out: Path) -> None:
    """Remove what only an unfinished folder needs."""
    for left in (out / PROGRESS_NAME, *out.glob("shard-*.json"), *out.glob(".*.tmp")):
        left.unlink(missing_ok=True)


def _shard_paths(out: Path, number: int) -> tuple[Path, Path]:
    return out / f"latents-{number:05d}.npy", out / f"shard-{number:05d}.json"


def _write_files(out: Path, source: Source, kept: np.ndarray, broken: dict[str, str]) -> None:
    """Write where the photograph behind every latent is, and what is wrong with the others."""
    from cat_serve.files import write_text

    assert source.files is not None
    assert source.file_bytes is not None
    lists: dict[str, object] = {
        "files": [source.files[index] for index in kept],
        "bytes": [source.file_bytes[index] for index in kept],
        "broken": broken,
    }
    listed = [source.listed[index] for index in kept]
    if listed and listed[0].container is not None:
        lists["tars"] = [(image.container, image.offset_bytes) for image in listed]
    write_text(out / FILES_NAME, json.dumps(lists))
