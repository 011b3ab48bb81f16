"""The one tensor contract of every engine: names, dtypes and shapes of what goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BATCH = "batch"

Z = "z"
CLASS_ID = "class_id"
TRUNCATION_PSI = "truncation_psi"
IMAGES = "images"
OK = "ok"

INPUT_NAMES = (Z, CLASS_ID, TRUNCATION_PSI)
OUTPUT_NAMES = (IMAGES, OK)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor; the first axis is the batch, written as the word."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def inputs(z_shape: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model whose latent has `z_shape` (without the batch)."""
    return (
        TensorSpec(Z, "float32", (BATCH, *z_shape)),
        TensorSpec(CLASS_ID, "int64", (BATCH,)),
        TensorSpec(TRUNCATION_PSI, "float32", (BATCH,)),
    )


def outputs(image_size: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model of images [height, width]."""
    return (
        TensorSpec(IMAGES, "uint8", (BATCH, *image_size, 3)),
        TensorSpec(OK, "bool", (BATCH,)),
    )


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass.

    Attributes:
        z: float32 [B, *z_shape].
        class_id: int64 [B].
        truncation_psi: float32 [B], 1 off, 0 the class mean.
    """

    z: np.ndarray
    class_id: np.ndarray
    truncation_psi: np.ndarray

    def __len__(self) -> int:
        return len(self.class_id)

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the tensors under their contract names."""
        return {Z: self.z, CLASS_ID: self.class_id, TRUNCATION_PSI: self.truncation_psi}


@dataclass(frozen=True)
class Output:
    """What one forward pass gave: `images` uint8 [B, H, W, 3] and `ok` bool [B]."""

    images: np.ndarray
    ok: np.ndarray
