"""The address of one image, which names the version of its model and so never means another image."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from cat_serve.images import Format
from cat_serve.wanted import ImageRequest


def permalink(asked: ImageRequest, image_format: Format) -> str | None:
    """Return the path and query of the only image; None if it is not one image of one class and seed."""
    if asked.n != 1 or asked.class_id is None or asked.seed is None:
        return None
    path = (
        f"/images/{quote(asked.model.label, safe='@')}/{asked.class_id}/{asked.seed}.{image_format}"
    )
    query: dict[str, float] = {}
    if asked.truncation_psi != 1:
        query["truncation_psi"] = asked.truncation_psi
    if asked.stage is not None:
        query["stage"] = asked.stage
    return f"{path}?{urlencode(query)}" if query else path
