"""From the parameters of a request to what is asked of the service: names to indices, seeds, latents, limits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cat_serve.backends.base import no_studio
from cat_serve.classes import Classes
from cat_serve.errors import InvalidInput
from cat_serve.latents import MAX_SEED, seed_range
from cat_serve.mixtures import parse_classes
from cat_serve.seeds import parse_seeds
from cat_serve.surface import ImageService
from cat_serve.wanted import ImageRequest, ServedModel
from cat_serve.web import schemas

T = TypeVar("T")

LARGEST = 1000.0  # of an explicit z, of which training draws every number from N(0, 1)


def resolve(service: ImageService, parameters: schemas.GenerateQuery) -> ImageRequest:
    """Turn names into indices, draw the seed if none was given, and hold everything to the limits.

    Raises:
        UnknownModel: there is no such model.
        InvalidInput: with the parameter that must be corrected.
    """
    text = given("class", parameters.class_, schemas.ACCEPTED, "for example POST /generate?class=7")
    model = service.model(parameters.model)
    mixture = parse_classes(text, model.classes, classes_of_all(service))
    require_one_source(parameters)
    z = getattr(parameters, "z", None)
    return ImageRequest(
        model=model,
        mixture=mixture,
        seeds=() if z is not None else seeds_of(parameters, service.limits.max_images_per_request),
        truncation_psi=parameters.truncation_psi + 0.0,  # -0.0 is 0
        stage=stage_of(model, parameters.stage),
        z=None if z is None else latent_of(z, model.artefact.manifest.z_shape),
    )


def given(name: str, value: T | None, accepted: Mapping[str, str], hint: str) -> T:
    """Return the value of a parameter that must be there.

    Args:
        accepted: what each parameter accepts, in words.
        hint: how to give it.

    Raises:
        InvalidInput: `missing_parameter`.
    """
    if value is None:
        raise InvalidInput(
            f"The parameter {name} is missing.",
            code="missing_parameter",
            hint=hint,
            parameter=name,
            accepted=accepted[name],
        )
    return value


def classes_of_all(service: ImageService) -> list[Classes]:
    """Return the classes of every model, for the advice in an error about one."""
    return [model.classes for model in service.models.values()]


def require_one_source(parameters: schemas.GenerateQuery) -> None:
    """Refuse parameters that say in more than one way which images are made.

    Raises:
        InvalidInput: `conflicting_parameters`.
    """
    sources = {name for name in ("seed", "n", "seeds", "z") if name in parameters.model_fields_set}
    sources -= {name for name in sources if getattr(parameters, name) is None}
    if sources <= {"seed", "n"} or len(sources) == 1:
        return
    names = sorted(sources)
    raise InvalidInput(
        f"{' and '.join(names)} were given together, and each says which images are made.",
        code="conflicting_parameters",
        hint="give seed with or without n, or seeds, or z",
        parameter=names[-1],
        got=names,
        accepted="seed and n, or seeds, or z",
    )


def seeds_of(parameters: schemas.GenerateQuery, most: int) -> Sequence[int]:
    """Return the seed of every image; the first is drawn if none was given.

    Raises:
        InvalidInput: `bad_seeds`, `bad_n` or `bad_seed`.
    """
    if parameters.seeds is not None:
        return parse_seeds(parameters.seeds, most)
    n = parameters.n
    if n > most:
        raise InvalidInput(
            f"n is {n}, and a request may have {most} images.",
            code="bad_n",
            hint="send several requests; image i has seed + i",
            parameter="n",
            got=n,
            accepted=schemas.accepted(most)["n"],
        )
    seed = secrets.randbelow(MAX_SEED + 2 - n) if parameters.seed is None else parameters.seed
    return seed_range(seed, n)


def stage_of(model: ServedModel, stage: int | None) -> int | None:
    """Return the stage, None for the last one: that is the image itself.

    Raises:
        InvalidInput: `bad_stage`, the model has no such stage; `no_studio`, it has none at all.
    """
    stages = model.artefact.manifest.stages
    if stage is None:
        return None
    if not stages:
        raise no_studio(model.name, model.artefact.manifest.why_no_studio)
    if stage > stages:
        raise InvalidInput(
            f"stage is {stage}, and {model.name} has {stages} stages.",
            code="bad_stage",
            hint=f"stage {stages} is the image itself",
            parameter="stage",
            got=stage,
            accepted=f"an integer from 1 to {stages}",
        )
    return None if stage == stages else stage


def latent_of(values: Any, z_shape: Sequence[int]) -> np.ndarray:
    """Return nested lists of numbers as float32 [*z_shape].

    Raises:
        InvalidInput: `bad_z`, they have another shape, or a value that is no number of a latent.
    """
    flat = np.fromiter(_numbers(values, tuple(z_shape), "z"), np.float64, math.prod(z_shape))
    return flat.astype(np.float32).reshape(z_shape)


def _numbers(values: Any, shape: tuple[int, ...], where: str) -> Iterator[float]:
    if not shape:
        if isinstance(values, bool) or not isinstance(values, (int, float)):
            raise _bad_z(f"{where} is no number", values)
        if not -LARGEST <= values <= LARGEST:  # False for NaN
            raise _bad_z(f"{where} is not from {-LARGEST:g} to {LARGEST:g}", values)
        yield float(values)
        return
    if not isinstance(values, list) or len(values) != shape[0]:
        got = f"a list of {len(values)}" if isinstance(values, list) else values
        raise _bad_z(f"{where} must be a list of {shape[0]}", got)
    for index, value in enumerate(values):
        yield from _numbers(value, shape[1:], f"{where}[{index}]")


def _bad_z(reason: str, got: Any) -> InvalidInput:
    return InvalidInput(
        f"z does not fit: {reason}.",
        code="bad_z",
        hint="the model's z_shape stands in /models; training draws every number from N(0, 1)",
        parameter="z",
        got=got,
        accepted=schemas.ACCEPTED["z"],
    )
