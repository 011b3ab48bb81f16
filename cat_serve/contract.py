"""The one tensor contract of every engine: names, dtypes and shapes of what goes in and comes out.

There are two artefacts of one checkpoint. The plain one makes images. The studio one takes mixtures of classes
and returns every stage's image too; with one class at weight 1 its images are the plain one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Of weights and activations inside a graph; what goes in and comes out has the same dtypes in every precision.
Precision = Literal["fp32", "fp16"]

BATCH = "batch"
NEUTRAL_PSI = 1.0  # of truncation_psi, whatever it means for a model

Z = "z"
CLASS_ID = "class_id"
TRUNCATION_PSI = "truncation_psi"
IMAGES = "images"
OK = "ok"

INPUT_NAMES = (Z, CLASS_ID, TRUNCATION_PSI)
OUTPUT_NAMES = (IMAGES, OK)

CLASS_WEIGHT = "class_weight"
STAGE_IMAGES = "stage_images"

STUDIO_INPUT_NAMES = (Z, CLASS_ID, CLASS_WEIGHT, TRUNCATION_PSI)
STUDIO_OUTPUT_NAMES = (IMAGES, OK, STAGE_IMAGES)
STUDIO_SLOTS = 4
WEIGHT_SUM_TOLERANCE = 1e-3


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


def studio_inputs(z_shape: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Return the inputs of the studio artefact: up to four classes with weights for every row."""
    z, _, psi = inputs(z_shape)
    return (
        z,
        TensorSpec(CLASS_ID, "int64", (BATCH, STUDIO_SLOTS)),
        TensorSpec(CLASS_WEIGHT, "float32", (BATCH, STUDIO_SLOTS)),
        psi,
    )


def studio_outputs(image_size: Sequence[int], stages: int) -> tuple[TensorSpec, ...]:
    """Return the outputs of the studio artefact of a model with `stages` stages."""
    return (
        *outputs(image_size),
        TensorSpec(STAGE_IMAGES, "uint8", (BATCH, stages, *image_size, 3)),
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


@dataclass(frozen=True)
class StudioBatch:
    """Inputs of one forward pass of the studio artefact.

    Attributes:
        z: float32 [B, *z_shape].
        class_id: int64 [B, 4].
        class_weight: float32 [B, 4], >= 0, each row's sum 1; a slot of weight 0 is unused, its class is not read.
        truncation_psi: float32 [B], 1 off, 0 the mean of the mixture.
    """

    z: np.ndarray
    class_id: np.ndarray
    class_weight: np.ndarray
    truncation_psi: np.ndarray

    def __len__(self) -> int:
        return len(self.class_id)

    @classmethod
    def of(cls, batch: Batch) -> StudioBatch:
        """Return the same request as a mixture of one class."""
        class_id = np.zeros((len(batch), STUDIO_SLOTS), dtype=np.int64)
        class_weight = np.zeros((len(batch), STUDIO_SLOTS), dtype=np.float32)
        class_id[:, 0], class_weight[:, 0] = batch.class_id, 1
        return cls(batch.z, class_id, class_weight, batch.truncation_psi)

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the tensors under their contract names."""
        return {
            Z: self.z,
            CLASS_ID: self.class_id,
            CLASS_WEIGHT: self.class_weight,
            TRUNCATION_PSI: self.truncation_psi,
        }


@dataclass(frozen=True)
class StudioOutput(Output):
    """An output with `stage_images` uint8 [B, K, H, W, 3]: h_1 .. h_K decoded, the last one `images`."""

    stage_images: np.ndarray
