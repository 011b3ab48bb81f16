"""What each call sends, and how its answer is read; both clients make these."""

from __future__ import annotations

import base64
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
import numpy as np

from cat_serve.animation import AnimationFormat
from cat_serve.client.results import (
    Animation,
    Determinism,
    Image,
    Images,
    ModelCard,
    ModelClasses,
    Timings,
)
from cat_serve.errors import BackendError, InvalidInput
from cat_serve.images import Format
from cat_serve.interpolation import Curve
from cat_serve.latents import MAX_SEED

T = TypeVar("T")

ClassLike = int | str | Mapping[int, float]
Seeds = str | Iterable[int]
Latent = np.ndarray | Sequence[Any]
ClassesOfKeys = ClassLike | Sequence[ClassLike]
SeedsOfKeys = int | Sequence[int]

Z_HEADER = "X-Z-Sha256"

_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, which may be repeated, and the reader of its answer; the reader also gets the number of attempts."""

    method: str
    path: str
    read: Callable[[httpx.Response, int], T]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] | None = None


def generate_call(
    class_: ClassLike, *, seed: int | None, n: int, seeds: Seeds | None, z: Latent | None,
    truncation_psi: float, stage: int | None, format: Format, model: str | None,
) -> Call[Images]:  # fmt: skip
    """Ask for images; a seed that is not given is drawn now, so that every attempt asks for the same.

    Raises:
        InvalidInput: more than one of `seed` with `n`, `seeds` and `z` is given, or a number is none.
    """
    body: dict[str, Any] = {
        "class": class_text(class_), "truncation_psi": truncation_psi, "stage": stage,
        "format": format, "model": model,
    }  # fmt: skip
    if (seed is not None or n != 1) + (seeds is not None) + (z is not None) > 1:
        raise InvalidInput(
            "seed and n, seeds, and z each say which images are made.", hint="give one of the three"
        )
    if seeds is not None:
        body["seeds"] = seeds if isinstance(seeds, str) else ",".join(map(str, seeds))
    elif z is not None:
        body["z"] = z
    else:
        body |= {"seed": draw_seed(n) if seed is None else seed, "n": n}
    several = seeds is not None or n != 1
    body["response"] = "json" if several else "image"
    return Call("POST", "generate", _read_several if several else _read_one, json=_given(body))


def interpolate_call(
    class_: ClassesOfKeys, *, seed: SeedsOfKeys | None, frames: int | None, fps: int | None,
    interpolation: Curve, loop: bool, truncation_psi: float, format: AnimationFormat, model: str | None,
) -> Call[Animation]:  # fmt: skip
    """Ask for an animation; a seed that is not given is drawn now, so that every attempt asks for the same.

    Raises:
        InvalidInput: a number is none.
    """
    seeds = draw_seed(1) if seed is None else seed
    body: dict[str, Any] = {
        "class": [class_text(each) for each in _classes_of_keys(class_)],
        "seed": list(seeds) if isinstance(seeds, Iterable) else seeds, "frames": frames, "fps": fps,
        "interpolation": interpolation, "loop": loop, "truncation_psi": truncation_psi,
        "format": format, "model": model,
    }  # fmt: skip
    return Call("POST", "interpolate", _read_animation, json=_given(body))


def _classes_of_keys(class_: ClassesOfKeys) -> Sequence[ClassLike]:
    if isinstance(class_, str | Mapping) or not isinstance(
        class_, Iterable
    ):  # also NumPy's integers
        return [class_]
    return class_


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(name, value) for name, value in body.items() if value is not None}


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON has it: NumPy's numbers and arrays as Python's own.

    Raises:
        InvalidInput: it is infinite or no number (NaN), for which JSON has no word.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(
            f"{name} has the value {value}.", code=f"bad_{name}", hint="give a finite number",
            parameter=name, got=str(value),
        )  # fmt: skip
    return [_plain(name, each) for each in value] if isinstance(value, list | tuple) else value


def class_text(class_: ClassLike) -> str:
    """Return a class as the server takes it; a mapping of indices to weights is a mixture."""
    if isinstance(class_, Mapping):
        return ",".join(f"{index}:{float(weight)!r}" for index, weight in class_.items())
    return str(class_)


def draw_seed(n: int) -> int:
    """Draw the seed of `n` images; image i has seed + i, which must not pass the last seed."""
    return secrets.randbelow(max(1, MAX_SEED + 2 - n))


def classes_call(model: str | None) -> Call[tuple[ModelClasses, ...]]:
    """Ask for the classes of every model, or of one."""
    params = None if model is None else {"model": model}
    return Call("GET", "classes", lambda answer, _: _listed(answer, _classes), params=params)


def models_call() -> Call[tuple[ModelCard, ...]]:
    """Ask for the card of every model."""
    return Call("GET", "models", lambda answer, _: _listed(answer, _card))


def ready_call() -> Call[bool]:
    """Ask whether images can be had."""
    return Call("GET", "readyz", lambda answer, _: True)


def understood(call: Call[T], answer: httpx.Response, attempts: int) -> T:
    """Return what a success says.

    Raises:
        BackendError: it is not one of cat-serve's.
    """
    try:
        return call.read(answer, attempts)
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{answer.url.host} answered {call.method} {answer.url.path} with something that is not "
            f"cat-serve's: {type(error).__name__} {error}.",
            hint="is this the address of a cat-serve, of this version?",
        ) from error


def _read_one(answer: httpx.Response, attempts: int) -> Images:
    headers = answer.headers
    media_type = headers["Content-Type"]
    seed = None if Z_HEADER in headers else int(headers["X-Seed"])
    image = Image(answer.content, media_type, seed)
    return _images(answer, attempts, (image,))


def _read_several(answer: httpx.Response, attempts: int) -> Images:
    told = answer.json()
    media_type = told["media_type"]
    images = (
        Image(base64.b64decode(each["base64"], validate=True), media_type, each["seed"])
        for each in told["images"]
    )
    return _images(answer, attempts, tuple(images))


def _read_animation(answer: httpx.Response, attempts: int) -> Animation:
    headers = answer.headers
    return Animation(
        data=answer.content,
        media_type=headers["Content-Type"],
        frames=int(headers["X-Frames"]),
        class_texts=tuple(headers["X-Class"].split(";")),
        seeds=tuple(map(int, headers["X-Seed"].split(";"))),
        **_made(answer, attempts),
    )


def _images(answer: httpx.Response, attempts: int, images: tuple[Image, ...]) -> Images:
    return Images(images, class_text=answer.headers["X-Class"], **_made(answer, attempts))


def _made(answer: httpx.Response, attempts: int) -> dict[str, Any]:
    """Return what every answer with images says in its headers."""
    headers = answer.headers
    model, _, version = headers["X-Model"].rpartition("@")
    spent_ms = {name: float(ms) for name, ms in _TIMING.findall(headers["Server-Timing"])}
    determinism: Determinism = "bytes" if headers["X-Determinism"] == "bytes" else "latent"
    return {
        "model": model,
        "version": version,
        "determinism": determinism,
        "timings": Timings(spent_ms["queue"], spent_ms["generate"], spent_ms["encode"]),
        "request_id": headers["X-Request-Id"],
        "attempts": attempts,
    }


def _listed(answer: httpx.Response, read: Callable[[Mapping[str, Any]], T]) -> tuple[T, ...]:
    return tuple(read(each) for each in answer.json()["models"])


def _classes(told: Mapping[str, Any]) -> ModelClasses:
    names = tuple(each["name"] for each in sorted(told["classes"], key=lambda each: each["index"]))
    return ModelClasses(told["model"], told["version"], told["default"], names)


def _card(told: Mapping[str, Any]) -> ModelCard:
    height, width = told["image_size"]
    return ModelCard(
        told["name"], told["version"], told["default"], told["num_classes"], (height, width),
        told["backend"], told["precision"], told["determinism"],
        told["limits"]["max_images_per_request"], told,
    )  # fmt: skip
