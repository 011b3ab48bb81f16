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


def latents_from_seeds(seeds: Sequence[int], z_shape: Sequence[int]) -> np.ndarray:
    """Return float32 [len(seeds), *z_shape]; each row depends on its own seed alone."""
    return np.stack([latent_from_seed(seed, z_shape) for seed in seeds])
