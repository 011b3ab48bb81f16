"""How many images a second the data can give, and how many GPUs that feeds.

    python -m benchmarks.loading

Writes moments of ImageNet's shape (random values, really on the disk), reads them in the order of training, from the
disk and from the page cache, makes batches of them with and without threads, and decodes photographs as a teacher
needs them. From the disk the clock on the wall counts, all else is in seconds of processor time: so many images a
second has one core that does nothing else, whoever shares the machine. What a GPU takes is arithmetic: the multiplications of one training step at a share of its peak.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from training.data import Latents
    from training.loader import Loader

CHANNELS, GRID, SHARD, CLASSES = 4, 32, 5000, 1000
ROW_BYTES = 2 * CHANNELS * GRID * GRID * 2  # mean and standard deviation, float16
IMAGENET = 1_281_167
BATCH = 512
COLD = 4  # batches from the disk: few, or later ones find what earlier ones read around their rows
PHOTOGRAPH_PX = (500, 375)  # the size most of ImageNet's have
SHARE_OF_PEAK = 0.4  # what training usually reaches of a GPU's peak
GPU_NAME = "H100"

# Multiply-adds of one forward pass, in 10^9: the generators', the paper's table; ViT-B/14 at 224 px, the teacher.
GENERATORS = {"cat-m2-256": 46.0, "cat-h2-256": 166.7}
TEACHER_GMACS = 23.2


def discriminator_gmacs(width: int = 768, depth: int = 12) -> float:
    """Count one pass over all scales: 12 C^2 for each token and block, and 2 C n^2 of attention inside each scale."""
    groups = [1 + (side // 2) ** 2 for side in (4, 8, 16, 32)]
    linear = 12 * width**2 * sum(groups)
    attention = 2 * width * sum(n * n for n in groups)
    return depth * (linear + attention) / 1e9


def step_gmacs(generator: float, teacher: float = TEACHER_GMACS) -> float:
    """Count one training step for one image, a backward pass as two forward ones.

    D's step: G once without gradients; D on real and fake, and on both again for a quarter of the batch (the penalties),
    each with its backward pass: 3 (2 + 0.5). G's step: G with its backward pass, D on fake with a backward pass to
    its input alone, D on real without any.
    """
    return generator * (1 + 3) + discriminator_gmacs() * (3 * 2.5 + 2 + 1) + teacher


def gpu_images_per_second(generator: float, peak_tflops: float) -> float:
    """Return what one GPU trains on in a second, at `SHARE_OF_PEAK`."""
    return SHARE_OF_PEAK * peak_tflops * 1e3 / (2 * step_gmacs(generator))


# --- what is measured ----------------------------------------------------------------------------


def write_moments(folder: Path, count: int) -> Latents:
    """Write prepared data of ImageNet's shape and random contents."""
    import numpy as np

    from training.data import LABELS_NAME, Index, Latents

    random = np.random.default_rng(0)
    names = []
    for start in range(0, count, SHARD):
        rows = min(SHARD, count - start)
        names.append(f"latents-{start // SHARD:05d}.npy")
        values = random.standard_normal((rows, 2 * CHANNELS, GRID, GRID), dtype=np.float32)
        np.save(folder / names[-1], np.abs(values).astype(np.float16))
    np.save(folder / LABELS_NAME, random.integers(0, CLASSES, count))
    Index(
        vae_sha256="", latents_mean=(0.0,) * CHANNELS, latents_std=(1 / 0.18215,) * CHANNELS,
        class_names=tuple(map(str, range(CLASSES))), latent_channels=CHANNELS, latent_size=GRID, count=count,
        shards=tuple(names), images={}, fingerprint="",
    ).save(folder)  # fmt: skip
    return Latents(folder)


def forget(folder: Path) -> None:
    """Ask the system to drop the shards from its page cache."""
    for path in folder.glob("latents-*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def rate(
    work: Callable[[int], object],
    batches: int,
    size: int = BATCH,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return images a second of `work(number of a batch)`."""
    start = clock()
    for number in range(batches):
        work(number)
    return batches * size / (clock() - start)


def mapped_rows(folder: Path, data: Latents) -> Callable[[Tensor], Tensor]:
    """Return the straightforward reader: row by row out of memory maps."""
    import numpy as np
    import torch

    shards = [np.load(folder / name, mmap_mode="r") for name in data.index.shards]

    def read(index: Tensor) -> Tensor:
        rows = [shards[i // SHARD][i % SHARD] for i in index.tolist()]
        return torch.from_numpy(np.stack(rows)).float()

    return read


def photograph() -> bytes:
    """Make a JPEG of the size most of ImageNet's photographs have."""
    import numpy as np
    from PIL import Image

    random, (width, height) = np.random.default_rng(0), PHOTOGRAPH_PX
    coarse = random.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(PHOTOGRAPH_PX).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def reading(read: Callable[[Tensor], Tensor], order: list[Tensor]) -> Callable[[int], Tensor]:
    """Return work that reads the n-th batch of an order."""
    return lambda number: read(order[number])


def walking(loader: Loader) -> Callable[[int], object]:
    """Return work that takes the n-th batch of a loader."""
    return lambda number: loader.at(number * BATCH)


def measure(folder: Path, count: int, batches: int) -> dict[str, float]:
    """Return images a second of every part, and seconds of one order over ImageNet."""
    import torch

    from training.images import decode
    from training.loader import AHEAD, Loader
    from training.streams import shuffled_indices

    data = write_moments(folder, count)
    order = [shuffled_indices(0, count, n * BATCH, BATCH) for n in range(batches)]
    found: dict[str, float] = {}
    readers = {"mapped": mapped_rows(folder, data), "read": data.moments}
    for name, read in readers.items():
        forget(folder)
        cold = min(COLD, batches)
        found[f"{name}_from_disk"] = rate(reading(read, order), cold, clock=time.perf_counter)
    for name, read in readers.items():
        for index in order:  # into the page cache
            read(index)
        found[f"{name}_from_memory"] = rate(reading(read, order), batches)
    for name, ahead in (("batches", 0), ("batches_ahead", AHEAD)):
        with Loader(data, 0, BATCH, ahead=ahead) as loader:
            found[name] = rate(walking(loader), batches)
    content = photograph()
    found["photographs_decoded"] = rate(lambda _: decode(content, 256), 40, 1)
    start = time.perf_counter()
    torch.randperm(IMAGENET)
    found["order_of_imagenet_s"] = time.perf_counter() - start
    return found


# --- the report ----------------------------------------------------------------------------------


def feeds(images_per_second: float) -> dict[str, float]:
    """Return preset -> GPUs of `GPU_NAME` that so many images a second keep busy."""
    from benchmarks.roofline import GPUS

    peak = next(gpu.peak_tflops for gpu in GPUS if gpu.name.startswith(GPU_NAME))
    return {
        name: float(f"{images_per_second / gpu_images_per_second(gmacs, peak):.3g}")
        for name, gmacs in GENERATORS.items()
    }


def say(found: dict[str, float]) -> None:
    """Print the table for people on stderr."""
    print(f"{ROW_BYTES:,} bytes an image; {ROW_BYTES * IMAGENET / 1e9:.1f} GB for ImageNet", file=sys.stderr)  # fmt: skip
    for name, value in found.items():
        if name.endswith("_s"):
            print(f"{name:28} {value:10.3f} s", file=sys.stderr)
            continue
        mb = f"{value * ROW_BYTES / 1e6:8.1f} MB/s" if "photographs" not in name else " " * 13
        gpus = ", ".join(f"{preset} {count:g}" for preset, count in feeds(value).items())
        print(f"{name:28} {value:10.0f} images/s {mb}   feeds {GPU_NAME}s: {gpus}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--count", type=int, default=20_000, help="images to write (16 kB each; default: %(default)s)")  # fmt: skip
    parser.add_argument("--batches", type=int, default=20, help="batches of 512 to measure over (default: %(default)s)")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder, so give a disk like the real one")  # fmt: skip
    return parser


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure; return the report."""
    from cat_serve.errors import InvalidInput

    a = arguments
    if min(a.count, a.batches) < 1:
        raise InvalidInput(f"--count {a.count} and --batches {a.batches} must be at least 1.")
    with tempfile.TemporaryDirectory(dir=a.folder, ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), a.count, a.batches)
    say(found)
    rounded = {name: float(f"{value:.3g}") for name, value in found.items()}
    best = max(value for name, value in found.items() if name.startswith("batches"))
    return {
        "bytes_an_image": ROW_BYTES, "cores": len(os.sched_getaffinity(0)), "measured": rounded,
        "step_gflops_an_image": {name: math.ceil(2 * step_gmacs(g)) for name, g in GENERATORS.items()},
        "feeds": {"gpu": GPU_NAME, "share_of_peak": SHARE_OF_PEAK, "batches": feeds(best),
                  "photographs_for_a_teacher_one_core": feeds(found["photographs_decoded"])},
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train", resumes=False)


if __name__ == "__main__":
    sys.exit(main())
