"""The command line. stdout is data, stderr is log; exit code 0 ok, 1 a check failed, 2 usage or machine.

One module a command. Everything heavy is imported by the command that needs it, so that --help is quick.
"""

from __future__ import annotations

import argparse

from cat_serve import __version__
from cat_serve.cli import bench, doctor, generate, importing, listings, reproduce, serve
from cat_serve.cli.arguments import read_settings
from cat_serve.commands import FAILED, OK, explain_failure
from cat_serve.errors import CatServeError

__all__ = ["build_parser", "main", "read_settings"]

# Every module here has add_to(commands), which adds its parsers with the default `run`: what it does with the parsed
# arguments. None is a clean end, a number is the exit code.
COMMANDS = (serve, listings, generate, reproduce, bench, doctor, importing)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(prog="cat-serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"cat-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except CatServeError as error:
        return explain_failure(error)
    except KeyboardInterrupt:
        return FAILED
    return OK if code is None else code
