"""POST /interpolate: the frames of a path between seeds and classes, as one animated file or a zip."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from cat_serve.animation import (
    ANIMATION_MEDIA_TYPES,
    MAX_FPS,
    AnimationFormat,
    encode_animation,
)
from cat_serve.errors import InvalidInput
from cat_serve.images import MAX_SIDE_PX
from cat_serve.interpolation import MIN_KEYS
from cat_serve.latents import MAX_SEED
from cat_serve.mixtures import parse_classes
from cat_serve.paths import Key, PathRequest
from cat_serve.surface import GeneratedImages, ImageService
from cat_serve.web.asking import classes_of_all, given
from cat_serve.web.dependencies import (
    TheDeadline,
    TheService,
    only,
    problems,
    require_one_place,
)
from cat_serve.web.generate import BINARY, IMAGE_HEADERS, described
from cat_serve.web.making import made_and_encoded, server_timing
from cat_serve.web.observed import CLIENT_GONE
from cat_serve.web.path_schemas import (
    ACCEPTED,
    OF_KEYS,
    InterpolateParameters,
    InterpolateQuery,
    accepted,
)

router = APIRouter()

PATH = "/interpolate"
EXAMPLE = f"for example POST {PATH}?class=7&seed=1&seed=2"
HEADERS = {
    **{name: text for name, text in IMAGE_HEADERS.items() if name not in ("X-Seed", "X-Class")},
    "X-Seed": "seed of every key frame, with semicolons between",
    "X-Class": "class of every key frame, with semicolons between",
    "X-Frames": "number of frames",
}
ANSWER: dict[str, Any] = {
    "description": "The animation. WebP says in EXIF, GIF in its comment and every PNG of a zip how it was made.",
    "content": dict.fromkeys(ANIMATION_MEDIA_TYPES.values(), BINARY),
    "headers": described(HEADERS),
}


@router.post(
    PATH,
    response_class=Response,
    responses={200: ANSWER, **problems(401, 404, 413, 422, 429, 500, 502, 503, 504)},
    dependencies=[only(*ACCEPTED, repeatable=OF_KEYS)],
    summary="Animate the way between seeds and classes",
)
async def interpolate(
    request: Request,
    service: TheService,
    deadline: TheDeadline,
    query: Annotated[InterpolateQuery, Query()],
    body: Annotated[InterpolateParameters | None, Body()] = None,
) -> Response:
    """Make the frames between two key frames or more; each is an image of its own, in the same queue as all others.

    Between key frames of different classes the class is a mixture, from the one to the other in equal steps.
    A key frame is the image that /generate makes of its class and seed.
    """
    require_one_place(request, body)
    parameters = body or query
    asked = resolve(service, parameters)
    done = await made_and_encoded(
        request, service, deadline, asked, lambda images: encoded(asked, images, parameters)
    )
    if done is None:
        return Response(status_code=CLIENT_GONE)
    images, content = done
    media_type = ANIMATION_MEDIA_TYPES[parameters.format]
    own = headers(asked, images)
    return Response(content, media_type=media_type, headers=own)


def resolve(service: ImageService, parameters: InterpolateQuery) -> PathRequest:
    """Turn names into indices, draw a seed if none was given, and hold everything to the limits.

    Raises:
        InvalidInput: with the parameter that must be corrected.
    """
    texts = given("class", parameters.class_, ACCEPTED, EXAMPLE)
    model, others = service.model(parameters.model), classes_of_all(service)
    seeds = parameters.seed or [secrets.randbelow(MAX_SEED + 1)]
    count = count_keys(len(texts), len(seeds))
    frames = frames_of(parameters, count, service.limits.most_frames)
    require_playable(parameters, frames, service.limits.most_frames)
    require_side(model.artefact.manifest.image_size, parameters.format)
    classes = [parse_classes(text, model.classes, others) for text in texts]
    return PathRequest(
        model=model,
        keys=tuple(
            Key(classes[index % len(classes)], seeds[index % len(seeds)]) for index in range(count)
        ),
        frames=frames,
        curve=parameters.interpolation,
        loop=parameters.loop,
        truncation_psi=parameters.truncation_psi + 0.0,  # -0.0 is 0
    )


def count_keys(classes: int, seeds: int) -> int:
    """Return the number of key frames.

    Raises:
        InvalidInput: `bad_keys`, there is only one, or their number is not clear.
    """
    count = max(classes, seeds)
    if count < MIN_KEYS or {classes, seeds} - {1, count}:
        raise InvalidInput(
            f"There are {classes} classes and {seeds} seeds, which make no key frames.",
            code="bad_keys",
            hint="give several seeds, several classes, or as many of each: class=7&seed=1&seed=2",
            got={"class": classes, "seed": seeds},
            accepted=f"at least {MIN_KEYS} of one of them, and of the other as many or one",
        )
    return count


def frames_of(parameters: InterpolateQuery, keys: int, most_frames: int) -> int:
    """Return how many frames are wanted: who does not say gets every key frame, and no more than the server makes."""
    if "frames" in parameters.model_fields_set:
        return parameters.frames
    return max(keys, min(parameters.frames, most_frames))


def require_playable(parameters: InterpolateQuery, frames: int, most_frames: int) -> None:
    """Refuse more frames than the server makes, or a rate that the format cannot show.

    Raises:
        InvalidInput: `bad_frames` or `bad_fps`.
    """
    if frames > most_frames:
        fewer = "ask for fewer, or for the parts of the path one after another"
        raise InvalidInput(
            f"frames is {frames}, and an animation may have {most_frames}.",
            code="bad_frames",
            hint=fewer if most_frames >= MIN_KEYS else "a server with a longer queue makes them",
            parameter="frames",
            got=frames,
            accepted=accepted(most_frames)["frames"],
        )
    if parameters.fps > MAX_FPS[parameters.format]:
        raise InvalidInput(
            f"fps is {parameters.fps}, and a gif is shown slower than that.",
            code="bad_fps",
            hint="use format=webp, or fps=50",
            parameter="fps",
            got=parameters.fps,
            accepted=ACCEPTED["fps"],
        )


def require_side(image_size: tuple[int, int], animation_format: AnimationFormat) -> None:
    """Refuse images that are larger than WebP can hold.

    Raises:
        InvalidInput: `bad_format`.
    """
    if animation_format == "webp" and max(image_size) > MAX_SIDE_PX["webp"]:
        raise InvalidInput(
            f"The frames have {image_size[1]} x {image_size[0]} px, and webp holds {MAX_SIDE_PX['webp']}.",
            code="bad_format",
            hint="use format=zip",
            parameter="format",
            got=animation_format,
            accepted="'zip'",
        )


def encoded(asked: PathRequest, images: GeneratedImages, parameters: InterpolateQuery) -> bytes:
    """Return the body of an answer."""
    facts = {**asked.facts(), "fps": parameters.fps}
    return encode_animation(
        images.pixels, parameters.format, parameters.fps, parameters.loop, facts
    )


def headers(asked: PathRequest, images: GeneratedImages) -> dict[str, str]:
    """Return the headers of an answer."""
    facts = asked.facts()
    return {
        "X-Seed": ";".join(map(str, facts["seed"])),
        "X-Class": ";".join(map(str, facts["class"])),
        "X-Model": asked.model.label,
        "X-Frames": str(len(asked)),
        "X-Determinism": images.determinism,
        "Server-Timing": server_timing(images),
    }
