"""What preparing a data set will take, from a sample of it that is really read and encoded."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.sources import Source

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from training.readers import Photograph

SAMPLE = 256  # photographs, where they are quick
SAMPLE_SECONDS = 60.0
HALF_BYTES = 2


@dataclass(frozen=True)
class Estimate:
    """What is known before the work.

    Attributes:
        source_bytes: of all image files; None where photographs are no files.
        moments_bytes: what the shards will take.
        free_bytes: what the disk of `--out` has left.
        sampled, broken: photographs that were read for this, and how many of them are broken.
        images_per_second: of reading and encoding together, the sample's first batch left out.
        seconds: for all of them at that rate; the processes that read are started already.
    """

    images: int
    classes: int
    source_bytes: int | None
    moments_bytes: int
    free_bytes: int
    sampled: int
    broken: int
    images_per_second: float
    seconds: float

    def report(self) -> dict[str, object]:
        """Return it as JSON has it, rounded."""
        return asdict(self) | {
            "images_per_second": float(f"{self.images_per_second:.3g}"),
            "seconds": float(f"{self.seconds:.3g}"),
        }

    def say(self) -> None:
        """Tell people on stderr."""
        hours, minutes = divmod(round(self.seconds / 60), 60)
        print(
            f"{self.images:,} photographs of {self.classes} classes; moments {_bytes_text(self.moments_bytes)}, "
            f"{_bytes_text(self.free_bytes)} free; about {hours} h {minutes} min at {self.images_per_second:.3g} images/s",
            file=sys.stderr,
        )
        if self.moments_bytes > self.free_bytes:
            print("warning: the disk has too little room for the moments", file=sys.stderr)


def estimate(vae: AutoencoderKL, source: Source, out: Path, batch_size: int) -> Estimate:
    """Read and encode some photographs, evenly spread, and extrapolate. Nothing is written."""
    from cat_serve.model.vae import upscale

    cells = (source.size_px // upscale(vae)) ** 2
    moments_bytes = len(source) * 2 * int(vae.config.latent_channels) * cells * HALF_BYTES
    sampled, broken, rate = _measure(vae, source, batch_size)
    return Estimate(
        images=len(source),
        classes=len(source.class_names),
        source_bytes=None if source.file_bytes is None else sum(source.file_bytes),
        moments_bytes=moments_bytes,
        free_bytes=shutil.disk_usage(_existing(out)).free,
        sampled=sampled,
        broken=broken,
        images_per_second=rate,
        seconds=len(source) / rate,
    )


def _measure(vae: AutoencoderKL, source: Source, batch_size: int) -> tuple[int, int, float]:
    """Return (photographs read, broken ones, photographs per second after the first batch)."""
    from training.shards import encode

    count = min(len(source), max(SAMPLE, 3 * batch_size))
    photographs = source.read(np.linspace(0, len(source) - 1, count).astype(np.int64))
    seen = broken = 0
    began = start = time.perf_counter()
    warm = 0  # photographs of the first batch, which waits for processes and kernels to start
    for batch in _batches(photographs, min(batch_size, max(1, count // 2))):
        whole = [each.pixels for each in batch if each.pixels is not None]
        if whole:
            encode(vae, np.stack(whole))
        seen, broken = seen + len(batch), broken + len(batch) - len(whole)
        if not warm:
            warm, start = seen, time.perf_counter()
        elif time.perf_counter() - began > SAMPLE_SECONDS:
            break
    if seen == warm:  # one batch is all there is
        warm, start = 0, began
    return seen, broken, (seen - warm) / (time.perf_counter() - start)


def _batches(photographs: Iterator[Photograph], size: int) -> Iterator[list[Photograph]]:
    batch: list[Photograph] = []
    for photograph in photographs:
        batch.append(photograph)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _bytes_text(count: int) -> str:
    size, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if count >= s or s == 1)  # fmt: skip
    return f"{count / size:.3g} {unit}"
