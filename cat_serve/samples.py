"""Many images for evaluation, as the field's tools read them: `arr_0` uint8 [N, H, W, 3] and `arr_1` int64 [N], the classes.

That is the layout of ADM's sample files (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021). The
classes take turns, image i is of class i mod C: an Inception Score is computed over consecutive pieces, and each must hold
all classes. Images of a mixture have no class: there arr_1 is float32 [N, C], the share of every class. The images are made
shard by shard, each file whole or not there, so that a run which was interrupted goes on.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cat_serve.errors import ArtefactError, InvalidInput
from cat_serve.files import write_text, written_whole
from cat_serve.latents import seed_range
from cat_serve.mixtures import Mixture

FORMAT = "cat-serve-samples-1"
INDEX_NAME = "index.json"
IMAGES, LABELS = "arr_0", "arr_1"

Make = Callable[[Sequence[Mixture], Sequence[int]], np.ndarray]
There = Callable[[int], object]


@dataclass(frozen=True)
class Samples:
    """Everything that the bytes of the images depend on; kept beside them.

    Attributes:
        model: `name@version`.
        class_id: the class of all, or the text of a mixture as `class_of` gives it; None: all `num_classes` in turn.
        seed: image k of a class has seed + k, so every class gets the same seeds.
        shard_size: images in one shard.
        batch: images in one forward pass where the engine's bytes may depend on it, else None.
    """

    model: str
    backend: str
    provider: str
    precision: str
    n: int
    num_classes: int
    class_id: int | str | None
    seed: int
    truncation_psi: float
    shard_size: int
    batch: int | None

    def __post_init__(self) -> None:
        for name in ("n", "shard_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}.", hint="1 or more")
        seed_range(self.seed, -(-self.n // self._turn))

    @property
    def _turn(self) -> int:
        return self.num_classes if self.class_id is None else 1

    @property
    def shards(self) -> range:
        return range(-(-self.n // self.shard_size))

    def rows(self, shard: int) -> tuple[list[Mixture], list[int]]:
        """Return mixture (of one class, mostly) and seed of every image of a shard."""
        start = shard * self.shard_size
        places = range(start, min(self.n, start + self.shard_size))
        turn = [{i: 1.0} for i in range(self.num_classes)] if self.class_id is None else [self._all]
        return [turn[i % len(turn)] for i in places], [self.seed + i // self._turn for i in places]

    def labels(self, mixtures: Sequence[Mixture]) -> np.ndarray:
        """Return what arr_1 says of these rows: their classes, int64 [n]; of a mixture shares, float32 [n, C]."""
        if not isinstance(self.class_id, str):
            return np.array([next(iter(mixture)) for mixture in mixtures], dtype=np.int64)
        shares = np.zeros((len(mixtures), self.num_classes), dtype=np.float32)
        for row, mixture in enumerate(mixtures):
            shares[row, list(mixture)] = list(mixture.values())
        return shares

    @property
    def _all(self) -> Mixture:
        """Return the mixture of all images, where they have the same."""
        parts = (part.partition(":") for part in str(self.class_id).split(","))
        return {int(index): float(share or 1) for index, _, share in parts}


def shard_name(shard: int) -> str:
    """Return the file name of a shard; sorted by name they are in order."""
    return f"{shard:06d}.npz"


def write_shards(folder: Path, samples: Samples, make: Make, there: There) -> int:
    """Make the shards that are not there yet.

    Args:
        make: returns the images, uint8 [n, H, W, 3], of these mixtures and seeds.
        there: told of every shard that was there already, how many images it has.

    Returns:
        How many images were made now.

    Raises:
        InvalidInput: the folder holds something else, or another process writes it.
    """
    made = 0
    with _claimed(folder, samples):
        for shard in samples.shards:
            mixtures, seeds = samples.rows(shard)
            path = folder / shard_name(shard)
            if path.is_file():
                there(len(seeds))
                continue
            images = make(mixtures, seeds)
            with written_whole(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, images, samples.labels(mixtures))
            made += len(seeds)
    return made


def join_shards(folder: Path, samples: Samples, path: Path) -> None:
    """Write all shards as one file of the same layout, in one step, holding one shard at a time in memory.

    Raises:
        ArtefactError: a shard is damaged.
    """
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in (IMAGES, LABELS):
            with archive.open(_entry(name), "w", force_zip64=True) as entry:
                for shard in samples.shards:
                    array = _read(folder / shard_name(shard), name, samples)
                    if shard == 0:
                        _write_header(entry, array, samples.n)
                    entry.write(np.ascontiguousarray(array).tobytes())


def write_one_file(path: Path, samples: Samples, make: Make, there: There) -> int:
    """Make all images into one .npz; shards are kept beside it until it is whole.

    Returns:
        How many images were made now.

    Raises: see `write_shards`.
    """
    folder = path.with_name(f".{path.name}.parts")
    made = write_shards(folder, samples, make, there)
    join_shards(folder, samples, path)
    shutil.rmtree(folder)
    return made


@contextmanager
def _claimed(folder: Path, samples: Samples) -> Iterator[None]:
    """Hold the folder for these samples and this process; what a killed process left half written is removed."""
    index = folder / INDEX_NAME
    if folder.is_dir() and any(folder.iterdir()) and not index.is_file():
        raise InvalidInput(
            f"{folder} is not empty, and holds no samples of this program.",
            hint="give a new folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not index.is_file():
        write_text(index, json.dumps({"format": FORMAT, **asdict(samples)}, indent=1) + "\n")
    _require_same(index, samples)
    with index.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"Another process is writing to {folder}.", hint="wait for it, or end it"
            ) from error
        for left_over in folder.glob(".*.npz.*.tmp"):
            left_over.unlink()
        yield


def _require_same(index: Path, samples: Samples) -> None:
    try:
        there = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    wanted = {"format": FORMAT, **asdict(samples)}
    if not isinstance(there, dict) or there != wanted:
        there = there if isinstance(there, dict) else {}
        other = ", ".join(
            f"{name} {there.get(name)!r}, not {value!r}"
            for name, value in wanted.items() if there.get(name) != value
        )  # fmt: skip
        raise InvalidInput(
            f"{index.parent} was begun with {other}.",
            hint="ask for the same again to go on, or give a new place",
        )


def _read(path: Path, name: str, samples: Samples) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as shard:
            array: np.ndarray = shard[name]
            return array
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtefactError(
            f"The shard {path.name} cannot be read.", hint=f"remove {path} and run this again"
        ) from error


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry without a time of its own, so that equal samples are equal files."""
    return zipfile.ZipInfo(f"{name}.npy")


def _write_header(stream: IO[bytes], first: np.ndarray, rows: int) -> None:
    header: dict[str, Any] = np.lib.format.header_data_from_array_1_0(first)
    header["shape"] = (rows, *first.shape[1:])
    np.lib.format.write_array_header_1_0(stream, header)
