"""What is wanted, and what was made, as messages. Latents from seeds are made in the engine process: a seed is enough."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cat_serve.contract import StudioBatch
from cat_serve.deadlines import NEVER, Deadline
from cat_serve.errors import BackendError
from cat_serve.mixtures import Mixture
from cat_serve.paths import Key, PathRequest
from cat_serve.surface import GeneratedImages
from cat_serve.wanted import ImageRequest, ServedModel, StudioRequest, Wanted
from cat_serve.workers.frames import Message

Arrays = tuple[np.ndarray, ...]


def of_request(request: Wanted) -> tuple[dict[str, Any], Arrays]:
    """Return a request as JSON values and arrays; its model as name and version."""
    facts, arrays = _of_rows(request)
    return {**facts, "model": request.model.name, "version": request.model.artefact.version}, arrays


def request_of(
    facts: Mapping[str, Any], arrays: Sequence[np.ndarray], model: ServedModel
) -> Wanted:
    """Return the request again, for `model`."""
    if facts["kind"] == "path":
        return PathRequest(
            model,
            tuple(Key(_mixture(weights), seed) for weights, seed in facts["keys"]),
            facts["frames"],
            facts["curve"],
            facts["loop"],
            facts["psi"],
        )
    if facts["kind"] == "rows":
        return StudioRequest(model, StudioBatch(*arrays), facts["stages"])
    z = arrays[0] if arrays else None
    seeds = _seeds(facts["seeds"])
    return ImageRequest(model, _mixture(facts["mixture"]), seeds, facts["psi"], facts["stage"], z)


def _of_rows(request: Wanted) -> tuple[dict[str, Any], Arrays]:
    if isinstance(request, ImageRequest):
        facts = {
            "kind": "images",
            "mixture": list(request.mixture.items()),
            "seeds": _of_seeds(request.seeds),
            "psi": request.truncation_psi,
            "stage": request.stage,
        }
        return facts, () if request.z is None else (request.z,)
    if isinstance(request, PathRequest):
        keys = [(list(key.weights.items()), key.seed) for key in request.keys]
        return {
            "kind": "path",
            "keys": keys,
            "frames": request.frames,
            "curve": request.curve,
            "loop": request.loop,
            "psi": request.truncation_psi,
        }, ()
    if isinstance(request, StudioRequest):
        rows = request.rows
        arrays = (rows.z, rows.class_id, rows.class_weight, rows.truncation_psi)
        return {"kind": "rows", "stages": request.stages}, arrays
    raise TypeError(f"{type(request).__name__} is not known to other processes")


def _of_seeds(seeds: Sequence[int]) -> dict[str, int] | list[int]:
    if isinstance(seeds, range) and seeds.step == 1:
        return {"from": seeds.start, "to": seeds.stop}
    return list(seeds)


def _seeds(values: Mapping[str, int] | list[int]) -> Sequence[int]:
    return values if isinstance(values, list) else range(values["from"], values["to"])


def _mixture(items: Sequence[tuple[int, float]]) -> Mixture:
    return dict(items)


def of_deadline(deadline: Deadline) -> dict[str, float] | None:
    """Return how much time is left; None if there is no end."""
    if not deadline.exists:
        return None
    return {"left_ms": 1e3 * deadline.left_s, "total_ms": deadline.total_ms}


def deadline_of(values: Mapping[str, float] | None) -> Deadline:
    """Return the deadline that has so much left from now."""
    if values is None:
        return NEVER
    return Deadline(time.perf_counter() + values["left_ms"] / 1e3, values["total_ms"])


def of_images(images: GeneratedImages) -> Message:
    """Return what was made; the pixels are not copied."""
    facts = {
        "determinism": images.determinism,
        "queue_ms": images.queue_ms,
        "generate_ms": images.generate_ms,
    }
    stages = () if images.stage_pixels is None else (images.stage_pixels,)
    return Message(facts, (images.pixels, *stages))


def images_of(message: Message) -> GeneratedImages:
    """Return what was made.

    Raises:
        BackendError: there are no pixels in it.
    """
    facts = message.facts
    if not message.arrays:
        raise BackendError("The engine process answered without images.")
    stages = message.arrays[1] if len(message.arrays) > 1 else None
    return GeneratedImages(
        message.arrays[0], facts["determinism"], facts["queue_ms"], facts["generate_ms"], stages
    )
