"""`cat-serve reproduce`: make a picture again from what it says of itself, and say whether it is the same.

    cat-serve reproduce boot.png
    cat-serve reproduce boot.png --url http://127.0.0.1:8000 --out again.png

A picture of /generate (PNG, JPEG, WebP; grids too) or /interpolate (WebP, GIF, a PNG of a zip), whose frames are compared
one by one. Exit code 0: every pixel is the same; 1: some differ, by the number of levels that is told; 2: it is of another
version of the model, or cannot be read.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.cli.engine import add_engine_flags, engine_settings
from cat_serve.cli.remote import add_server_flags
from cat_serve.cli.writing import require_writable
from cat_serve.commands import USAGE, run_command
from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from cat_serve.client import Client
    from cat_serve.reproduce import Picture, StillFormat
    from cat_serve.service import Service
    from cat_serve.settings import Settings

ANOTHER_VERSION = "another_version"
MOST_IMAGES = 4096  # of a picture that was made smaller; of any other as many as it has room for


def add_to(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reproduce", help="make a picture again, and say whether it is the same",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("picture", type=Path, help="the file")
    add("--out", type=Path, metavar="FILE", help="write what was made")
    add_server_flags(
        parser, "let the server at this address make it, and not an engine in this process"
    )
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the picture again, and print a line of JSON."""
    report: dict[str, Any] = {}

    def do() -> dict[str, Any]:
        report.update(work(arguments))
        return report

    code = run_command(do, extra="client" if arguments.url else "cpu", resumes=False)
    return USAGE if report.get("result") == ANOTHER_VERSION else code


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, make again, compare, and write what was made."""
    from cat_serve.reproduce import compare, read_picture

    picture = read_picture(arguments.picture)
    if arguments.out is not None:
        require_writable(arguments.out)
    made = _by_server(arguments, picture) if arguments.url else _here(arguments, picture)
    facts = {"picture": str(arguments.picture), "model": picture.label, "request": picture.request}
    if made is None:
        print(f"{picture.label} is not here: another version of the model would make another picture",
              file=sys.stderr)  # fmt: skip
        return {**facts, "result": ANOTHER_VERSION, "passed": False}
    content, determinism = made
    compared = compare(picture, content)
    if arguments.out is not None:
        from cat_serve.cli.pictures import replace

        replace(arguments.out, content)
    print(compared.sentence(determinism), file=sys.stderr)
    return {
        **facts, "result": compared.result, "levels": compared.levels,
        "different_share": round(compared.different_share, 6), "frames": len(picture.pixels),
        "different_frames": list(compared.different_frames), "same_file": compared.same_file,
        "determinism": determinism, "out": None if arguments.out is None else str(arguments.out),
        "passed": compared.result == "identical",
    }  # fmt: skip


def _here(arguments: argparse.Namespace, picture: Picture) -> tuple[bytes, str] | None:
    """Make the picture with an engine in this process; None if its version is not in the repository."""
    from cat_serve.cli.pictures import service_here
    from cat_serve.embedded import require_here
    from cat_serve.repository import find_repository, find_version

    settings: Settings = engine_settings(arguments)
    require_here(settings)
    artefact = find_version(
        find_repository(settings.model_repository), picture.model, picture.version
    )
    if artefact is None:
        return None
    room = max(MOST_IMAGES, picture.room(artefact.manifest.image_size))

    async def make() -> tuple[bytes, str]:
        async with service_here(settings, artefact, room) as service:
            again = _animation if picture.animated else _still
            return await again(service, picture), service.determinism(picture.model)

    return asyncio.run(make())


async def _still(service: Service, picture: Picture) -> bytes:
    """Return what POST /generate answers to the picture's parameters."""
    from cat_serve.cli.pictures import answer_of, request_of

    image_format = picture.still_format
    asked = request_of(service, picture.request)
    return await answer_of(service, asked, image_format, None)


async def _animation(service: Service, picture: Picture) -> bytes:
    """Return what POST /interpolate answers to the picture's parameters, or the frame of it that it is."""
    from cat_serve.cli.pictures import parsed
    from cat_serve.web.interpolate import encoded, resolve
    from cat_serve.web.path_schemas import ACCEPTED, InterpolateParameters

    parameters = parsed(InterpolateParameters, picture.request, ACCEPTED)
    asked = resolve(service, parameters)
    frame = picture.frame
    content = encoded(asked, await service.generate(asked), parameters)
    return content if frame is None else _frame_in(content, frame)


def _by_server(arguments: argparse.Namespace, picture: Picture) -> tuple[bytes, str] | None:
    """Let a server make the images; None if it has another version of the model.

    Raises:
        InvalidInput: the picture says what no request can.
    """
    from cat_serve.cli.remote import client_of

    # what a picture cannot be is refused before anybody is asked
    ask: Callable[[Client, Picture], tuple[bytes, str]] = (
        functools.partial(_animation_of, frame=picture.frame)
        if picture.animated
        else functools.partial(_still_of, image_format=picture.still_format)
    )
    with client_of(arguments) as client:
        if picture.label not in [f"{card.name}@{card.version}" for card in client.models()]:
            return None
        try:
            return ask(client, picture)
        except TypeError as error:
            raise InvalidInput(f"The picture says what no request can: {error}.") from error


def _still_of(client: Client, picture: Picture, image_format: StillFormat) -> tuple[bytes, str]:
    """Return a server's images, laid out here."""
    from cat_serve.images import encode, grid

    asked = {k: v for k, v in picture.request.items() if k not in ("class", "format", "model")}
    images = client.generate(
        picture.told.get("class", ""), **asked, format="npy", model=picture.model
    )
    return encode(grid(images.array()), image_format, picture.told), images.determinism


def _animation_of(client: Client, picture: Picture, frame: int | None) -> tuple[bytes, str]:
    """Return a server's animation, or the frame of it that the picture is."""
    asked = {k: v for k, v in picture.request.items() if k not in ("class", "model")}
    made = client.interpolate(picture.told.get("class", ""), **asked, model=picture.model)
    return made.data if frame is None else _frame_in(made.data, frame), made.determinism


def _frame_in(archive: bytes, frame: int) -> bytes:
    """Return one PNG of a zip of frames.

    Raises:
        InvalidInput: it has fewer.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as frames:
        names = frames.namelist()
        if frame >= len(names):
            raise InvalidInput(f"The picture says that it is frame {frame} of {len(names)}.")
        return frames.read(names[frame])
