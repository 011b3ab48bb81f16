"""Pictures of `cat-serve generate`: the service answers as it would over HTTP, and what it answers is written."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cat_serve.cli.writing import bar_of_images, is_folder, require_writable
from cat_serve.errors import CatServeError, InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cat_serve.images import Format
    from cat_serve.manifest import Artefact
    from cat_serve.service import Service
    from cat_serve.settings import Settings
    from cat_serve.wanted import ImageRequest
    from cat_serve.web.answers import Form

SUFFIXES: dict[str, Format] = {
    ".png": "png", ".jpeg": "jpeg", ".jpg": "jpeg", ".webp": "webp", ".npy": "npy",
}  # fmt: skip
FOLDER_FORMAT: Format = "png"
MAX_IMAGES = 10_000  # pictures of one run; --n has no limit

P = TypeVar("P", bound="BaseModel")


def write_pictures(
    arguments: argparse.Namespace, settings: Settings, artefact: Artefact
) -> dict[str, Any]:
    """Make one picture of all seeds, or a folder with a file for each.

    Raises:
        InvalidInput: no class, seeds that are none, or a file name that says no format.
    """
    if arguments.class_ is None:
        raise InvalidInput(
            "The class is missing.", hint="--class 7, for example; --n 100 makes some of all"
        )
    seeds = read_seeds(arguments.seeds)
    out = Path(arguments.out)
    image_format = None if is_folder(arguments.out) else SUFFIXES.get(out.suffix.lower())
    if image_format is None and not is_folder(arguments.out):
        raise InvalidInput(f"--out {arguments.out} says no format.",
                           hint=f"a folder, or a name with one of {', '.join(SUFFIXES)}")  # fmt: skip
    if None not in (image_format, arguments.format) and image_format != arguments.format:
        raise InvalidInput(
            f"--out {arguments.out} is a {image_format}, and --format is {arguments.format}.",
            hint="the suffix says the format of a file; --format is for a folder",
        )
    require_writable(out)
    return asyncio.run(_write(arguments, settings, artefact, seeds, out, image_format))


async def _write(
    arguments: argparse.Namespace, settings: Settings, artefact: Artefact, seeds: Sequence[int],
    out: Path, image_format: Format | None,
) -> dict[str, Any]:  # fmt: skip
    from cat_serve.cli.generate import report

    name = artefact.manifest.model
    async with service_here(settings, artefact, len(seeds)) as service:
        began_s = time.perf_counter()
        with bar_of_images(len(seeds), name) as bar:
            if image_format is None:
                studio = await _folder(arguments, service, seeds, out, bar)
            else:
                studio = await _one_file(arguments, service, seeds, out, image_format)
                bar.update(len(seeds))
        seconds = time.perf_counter() - began_s
        label, determinism = service.model(None).label, service.determinism(name, studio)
    more = {"class": arguments.class_, "seeds": arguments.seeds or str(seeds[0])}
    return report(len(seeds), len(seeds), seconds, label, determinism, settings, out, **more)


@asynccontextmanager
async def service_here(
    settings: Settings, artefact: Artefact, images: int
) -> AsyncIterator[Service]:
    """Start the service without its HTTP, with room for so many images at once.

    Raises:
        CatServeError: the model cannot be opened, or does not make its golden images.
    """
    from cat_serve.batching import Limits
    from cat_serve.opening import engine_opener
    from cat_serve.service import Service

    name = artefact.manifest.model
    limits = Limits(
        max_images_per_request=images,
        max_queued_images=2 * images + settings.max_batch,
        max_batch=settings.max_batch,
        max_frames_per_request=images,
    )
    service = Service({name: artefact}, name, engine_opener(settings), settings.concurrency, limits)
    try:
        await service.start()
        if isinstance(service.failure, CatServeError):
            raise service.failure
        if service.failure is not None:
            raise CatServeError("The model could not be opened.") from service.failure
        yield service
    finally:
        await service.close()


async def _one_file(
    arguments: argparse.Namespace, service: Service, seeds: Sequence[int], out: Path,
    image_format: Format,
) -> bool:  # fmt: skip
    """Write what `POST /generate` answers to a request for all seeds; several as .npy are one array.

    Says whether the studio graph made it.
    """
    form: Form | None = "image" if len(seeds) > 1 and image_format == "npy" else None
    asked = _request(arguments, service, image_format, **_which(seeds), response=form)
    content = await answer_of(service, asked, image_format, form)
    await asyncio.to_thread(replace, out, content)
    return asked.needs_studio


async def _folder(
    arguments: argparse.Namespace, service: Service, seeds: Sequence[int], out: Path, bar: Any
) -> bool:
    """Write what `POST /generate` answers to a request for each seed; as many at once as fill the passes.

    Says whether the studio graph made them.
    """
    from cat_serve.web.answers import file_name

    waiting, failures, studio = iter(seeds), list[Exception](), set[bool]()
    image_format: Format = arguments.format or FOLDER_FORMAT

    async def work() -> None:
        for seed in waiting:
            asked = _request(arguments, service, image_format, seed=seed)
            content = await answer_of(service, asked, image_format, None)
            path = out / file_name(asked, seed, image_format)
            await asyncio.to_thread(replace, path, content)
            studio.add(asked.needs_studio)
            bar.update(1)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(len(seeds), 2 * service.limits.max_batch)):
                tasks.create_task(work())
    except* CatServeError as errors:
        failures.extend(errors.exceptions)
    if failures:
        raise failures[0]
    return any(studio)


def _request(
    arguments: argparse.Namespace, service: Service, image_format: Format, **more: Any
) -> ImageRequest:
    """Return the request that the same parameters make over HTTP.

    Raises:
        InvalidInput: one of them does not fit.
    """
    values = {
        "class": arguments.class_, "truncation_psi": arguments.truncation_psi,
        "stage": arguments.stage, "format": image_format, **more,
    }  # fmt: skip
    return request_of(service, {k: v for k, v in values.items() if v is not None})


def request_of(service: Service, given: Mapping[str, Any]) -> ImageRequest:
    """Return the request that these parameters of POST /generate make.

    Raises:
        InvalidInput: one of them does not fit.
    """
    from cat_serve.web.asking import resolve
    from cat_serve.web.schemas import ACCEPTED, GenerateParameters

    return resolve(service, parsed(GenerateParameters, given, ACCEPTED))


def parsed(model: type[P], given: Mapping[str, Any], words: Mapping[str, str]) -> P:
    """Return parameters checked as those of a request are.

    Args:
        words: what each parameter accepts.

    Raises:
        InvalidInput: one of them does not fit.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        accepted = words.get(name)
        raise InvalidInput(
            f"{name} is {given.get(name)!r}: {first['msg']}.",
            code=f"bad_{name}", hint=None if accepted is None else f"{name}: {accepted}",
        ) from error  # fmt: skip


async def answer_of(
    service: Service, asked: ImageRequest, image_format: Format, form: Form | None
) -> bytes:
    """Return the body of the answer."""
    from cat_serve.web.answers import answer, choose_form, require_fits

    chosen = choose_form(form, image_format, asked.n)
    require_fits(asked, image_format, chosen)
    made = await service.generate(asked)
    made_into = await asyncio.to_thread(answer, asked, made.pixels, image_format, chosen)
    return made_into.content


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    from cat_serve.files import written_whole

    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _which(seeds: Sequence[int]) -> dict[str, Any]:
    """Return the parameters that ask for these seeds."""
    from cat_serve.seeds import seeds_text

    in_a_row = isinstance(seeds, range)
    return {"seed": seeds[0], "n": len(seeds)} if in_a_row else {"seeds": seeds_text(seeds)}


def read_seeds(text: str | None) -> Sequence[int]:
    """Read `5`, `0-63` or `0-9,42`; draw one seed if there is no text.

    Raises:
        InvalidInput: these are no seeds, one comes twice, or they are too many.
    """
    from cat_serve.latents import MAX_SEED
    from cat_serve.seeds import parse_seeds

    if text is None:
        seed = secrets.randbelow(MAX_SEED + 1)
        return range(seed, seed + 1)
    return parse_seeds(text, MAX_IMAGES)
