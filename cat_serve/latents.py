"""From a seed to a latent, by a stream that will not change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cat_serve.errors import InvalidInput

MAX_SEED = 2**32 - 1


def latent_from_seed(seed: int, z_shape: Sequence[int]) -> np.ndarray:
    """Return z = RandomState(seed).randn(*z_shape) as float32; NumPy keeps this stream frozen (NEP 19).

    Raises:
        InvalidInput: the seed is outside 0..2^32-1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput(
            f"Seed {seed} is out of range.", code="bad_seed", hint=f"0..{MAX_SEED}",
            got=seed, accepted=f"an integer from 0 to {MAX_SEED}",
        )  # fmt: skip
    return np.random.RandomState(seed).randn(*z_shape).astype(np.float32)


def seed_range(seed: int, count: int) -> range:
    """Return the seeds of `count` images, image i seed + i.

    Raises:
        InvalidInput: the range would pass 2^32-1.
    """
    last = MAX_SEED + 1 - count
    if not 0 <= seed <= last:
        accepted = f"an integer from 0 to {last}" + (f" for {count} images" if count > 1 else "")
        raise InvalidInput(
            f"Seed {seed} for {count} images: image i has seed + i, and {seed + count - 1} is out of range.",
            code="bad_seed",
            hint=f"seeds end at {MAX_SEED}",
            got=seed,
            accepted=accepted,
            parameter="seed",
        )
    return range(seed, seed + count)


def latents_from_seeds(seeds: Sequence[int], z_shape: Sequence[int]) -> np.ndarray:
    """Return float32 [len(seeds), *z_shape]; each row depends on its own seed alone."""
    return np.stack([latent_from_seed(seed, z_shape) for seed in seeds])
