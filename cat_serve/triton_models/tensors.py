"""The tensors of the friendly Triton model, and the parameters that every configuration carries.

What the engine model's tensors are, `cat_serve.contract` says.
"""

from __future__ import annotations

from cat_serve.contract import BATCH, CLASS_ID, TRUNCATION_PSI, TensorSpec
from cat_serve.images import Format

FRIENDLY_MODEL = "cat"  # reserved in every repository

CLASS = "class"
SEED = "seed"
MODEL = "model"
FORMAT = "format"
IMAGE = "image"
ENCODED = "encoded"

FREE = -1  # a size that differs between models

# `string` is Triton's word for bytes of any length; every input but one of class and class_id may be left out.
FRIENDLY_INPUTS = (
    TensorSpec(CLASS, "string", (BATCH,)),
    TensorSpec(CLASS_ID, "int64", (BATCH,)),
    TensorSpec(SEED, "int64", (BATCH,)),
    TensorSpec(TRUNCATION_PSI, "float32", (BATCH,)),
    TensorSpec(MODEL, "string", (BATCH,)),
    TensorSpec(FORMAT, "string", (BATCH,)),
)
FRIENDLY_OUTPUTS = (
    TensorSpec(IMAGE, "uint8", (BATCH, FREE, FREE, 3)),
    TensorSpec(ENCODED, "string", (BATCH,)),
    TensorSpec(SEED, "int64", (BATCH,)),
    TensorSpec(CLASS_ID, "int64", (BATCH,)),
)

ENCODED_FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")

# Parameters of a configuration. Clients read the first three; `version` is that of the newest version folder.
VERSION = "version"
PRECISION = "precision"
PACKAGE_VERSION = "package_version"
CHECKPOINT = "checkpoint_sha256"  # of the weights that the served graph was made from
NUM_CLASSES = "num_classes"
THREADS = "threads"
DEFAULT_MODEL = "default_model"
MODELS = "models"  # JSON: the version folder of each engine model that the friendly model asks


def version_key(number: int) -> str:
    """Return the parameter that holds the manifest's version of one version folder."""
    return f"{VERSION}_{number}"
