"""Which images may be shown. Triton's workers hold theirs to the same, so nothing of the service is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cat_serve.contract import Output
from cat_serve.errors import BadOutput
from cat_serve.wanted import Wanted

MAX_SHOWN = 8
# Every so many pixels tell of nearly all pictures that they have more than one colour.
GLANCE_PX = 8


def one_colour(images: np.ndarray) -> np.ndarray:
    """Say of each image, uint8 [n, H, W, 3], whether it has one colour only; bool [n]."""
    flags: np.ndarray = (images[:, ::GLANCE_PX, ::GLANCE_PX] == images[:, :1, :1]).all((1, 2, 3))
    for row in np.flatnonzero(flags):
        flags[row] = (images[row] == images[row, :1, :1]).all()
    return flags


def require_showable(output: Output, request: Wanted) -> None:
    """Refuse images that the graph flagged, or that have one colour only.

    Raises:
        BadOutput: saying which they are.
    """
    constant = one_colour(output.images)
    bad = np.flatnonzero(constant | ~output.ok)
    if not len(bad):
        return
    facts = request.facts_of(bad.tolist())
    what = "of a single colour" if constant[bad].all() else "marked as not ok"
    raise BadOutput(
        f"The model {request.model.name} made images {what}: {_listed(facts)}.",
        hint="try other seeds; if all fail, the artefact or the device is damaged",
        model=request.model.label,
        images=len(bad),
        **facts,
    )


def _listed(facts: Mapping[str, Any]) -> str:
    """Write facts for people; of long lists the beginning."""
    parts = []
    for name, value in facts.items():
        if isinstance(value, list):
            name = name if len(value) > 1 else name.removesuffix("s")
            cut = ", ..." if len(value) > MAX_SHOWN else ""
            value = ", ".join(map(str, value[:MAX_SHOWN])) + cut
        parts.append(f"{name} {value}")
    return "; ".join(parts)
