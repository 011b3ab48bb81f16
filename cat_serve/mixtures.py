"""Mixtures of classes: shares by class index, as text and as the slots of the studio graph."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cat_serve.classes import Classes
from cat_serve.contract import STUDIO_SLOTS, WEIGHT_SUM_TOLERANCE
from cat_serve.errors import InvalidInput

# Share of each class by its index, in rising order, all above 0, with the sum 1.
Mixture = Mapping[int, float]

ACCEPTED = (
    f"up to {STUDIO_SLOTS} classes by index with weights that sum to 1, such as '7:0.7,9:0.3'"
)
_SHARE = r"[0-9]{1,6}:([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
PATTERN = f"^{_SHARE}(,{_SHARE}){{0,{STUDIO_SLOTS - 1}}}$"
# A sum that is nearer to 1 is left alone, so that a mixture means the same when its own text is read again.
EXACT = 1e-6
ROUNDING = 1e-9

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def parse_classes(text: str, classes: Classes, others: Sequence[Classes] = ()) -> Mixture:
    """Return what `text` means: a class by index or name, or a mixture `7:0.7,9:0.3` by index.

    Raises:
        UnknownClass: no such index or name.
        InvalidInput: a shared name (`ambiguous_class`), or no mixture (`bad_mixture`).
    """
    if ":" not in text or classes.has(text):
        return {classes.index_of(text, others): 1.0}
    parts = text.split(",")
    if len(parts) > STUDIO_SLOTS:
        raise _refused(text, f"it has {len(parts)} classes, and {STUDIO_SLOTS} can be mixed")
    weights: dict[int, float] = {}
    for part in parts:
        index, _, share = (piece.strip() for piece in part.partition(":"))
        if not (index.isascii() and index.isdigit()):
            raise _refused(text, f"{index!r} is no class index; a mixture takes no names")
        class_id = classes.index_of(index, others)
        if class_id in weights:
            raise _refused(text, f"class {class_id} comes twice")
        weights[class_id] = _weight(text, share)
    return _normal(text, weights)


def class_text(mixture: Mixture) -> str:
    """Return the text that means this mixture: an index, or indices with their shares."""
    if len(mixture) == 1:
        return str(next(iter(mixture)))
    return ",".join(f"{class_id}:{share!r}" for class_id, share in mixture.items())


def class_of(mixture: Mixture) -> int | str:
    """Return the class as a request may name it in JSON: an index as a number, a mixture as text."""
    return next(iter(mixture)) if len(mixture) == 1 else class_text(mixture)


def slots(mixtures: Sequence[Mixture]) -> tuple[np.ndarray, np.ndarray]:
    """Return `class_id` int64 [B, 4] and `class_weight` float32 [B, 4] of one mixture for each row."""
    class_id = np.zeros((len(mixtures), STUDIO_SLOTS), dtype=np.int64)
    class_weight = np.zeros((len(mixtures), STUDIO_SLOTS), dtype=np.float32)
    for row, mixture in enumerate(mixtures):
        class_id[row, : len(mixture)] = list(mixture)
        class_weight[row, : len(mixture)] = list(mixture.values())
    return class_id, class_weight


def _weight(text: str, share: str) -> float:
    if not _NUMBER.fullmatch(share) or not math.isfinite(weight := float(share)):
        raise _refused(text, f"{share!r} is no weight")
    if weight < 0:
        raise _refused(text, f"the weight {share} is below 0")
    return weight


def _normal(text: str, weights: Mapping[int, float]) -> Mixture:
    """Return the mixture in the one form that all its texts have: sorted, without shares of 0, with the sum 1."""
    total = math.fsum(weights.values())
    if abs(total - 1) > WEIGHT_SUM_TOLERANCE + ROUNDING:
        raise _refused(text, f"its weights sum to {total:.6g}, not to 1", sum=total)
    scale = total if abs(total - 1) > EXACT else 1.0
    return {
        class_id: weights[class_id] / scale for class_id in sorted(weights) if weights[class_id]
    }


def _refused(text: str, reason: str, **details: Any) -> InvalidInput:
    return InvalidInput(
        f"class {text!r} is no mixture: {reason}.",
        code="bad_mixture",
        hint="for example class=7:0.7,9:0.3",
        parameter="class",
        got=text,
        accepted=ACCEPTED,
        **details,
    )
