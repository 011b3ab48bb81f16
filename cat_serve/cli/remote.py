"""Flags of commands that ask a server, and the client that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import InvalidInput

if TYPE_CHECKING:
    from cat_serve.client import Client


def add_server_flags(parser: Any, url: str) -> None:
    """Add the flags.

    Args:
        url: what --url is for.
    """
    parser.add_argument("--url", help=url)
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with an API key for the server"
    )


def client_of(arguments: argparse.Namespace, **options: Any) -> Client:
    """Return the client of the server at --url.

    Args:
        options: see `Client`.

    Raises:
        InvalidInput: the file has no key, or --url is no address.
    """
    from cat_serve.client import Client

    file: Path | None = arguments.api_key_file
    return Client(arguments.url, api_key=None if file is None else _key_in(file), **options)


def _key_in(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise InvalidInput(f"--api-key-file {file} cannot be read: {reason}.") from error
    if not key or any(character.isspace() for character in key):
        raise InvalidInput(
            f"--api-key-file {file} holds no key.", hint="the key alone, on one line"
        )
    return key
