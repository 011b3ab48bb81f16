"""The command line. stdout is data, stderr is log; exit code 0 ok, 1 a check failed, 2 usage or machine.

Everything heavy is imported by the command that needs it, so that --help is quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cat_serve import __version__
from cat_serve.commands import FAILED, OK, explain_failure
from cat_serve.errors import CatServeError

if TYPE_CHECKING:
    from pydantic_settings import CliSettingsSource

    from cat_serve.manifest import Artefact
    from cat_serve.settings import RepositorySettings, Settings

S = TypeVar("S", bound="RepositorySettings")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each command has its settings as flags."""
    from cat_serve.settings import RepositorySettings, Settings

    parser = argparse.ArgumentParser(prog="cat-serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"cat-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "serve", "serve the models over HTTP", Settings, serve)
    _add(commands, "classes", "list the classes of a model", RepositorySettings, classes)
    _add(commands, "models", "list the models of the repository", RepositorySettings, models)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(read_settings(arguments))
    except CatServeError as error:
        return explain_failure(error)
    except KeyboardInterrupt:
        return FAILED
    return OK


def read_settings(arguments: argparse.Namespace) -> RepositorySettings:
    """Return the settings from flags, then environment, then defaults.

    Raises:
        InvalidInput: a value does not fit; names the variable and the flag.
    """
    from pydantic import ValidationError

    from cat_serve.settings import explain

    source: CliSettingsSource[Any] = arguments.source
    fields = arguments.settings.model_fields
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    try:
        return arguments.settings(_cli_settings_source=source(parsed_args=given))
    except ValidationError as error:
        raise explain(error) from error


def serve(settings: Settings) -> None:
    """Serve until a signal."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    artefacts, _ = _read_models(settings)
    from cat_serve.web.server import serve as serve_http

    serve_http(settings, artefacts)


def classes(settings: RepositorySettings) -> None:
    """Print index and name of every class of the chosen model, separated by a tab."""
    artefacts, default = _read_models(settings)
    for index, name in enumerate(artefacts[default].manifest.class_names):
        print(f"{index}\t{name}")


def models(settings: RepositorySettings) -> None:
    """Print one line for each model, its columns separated by tabs."""
    artefacts, default = _read_models(settings)
    print("name", "version", "classes", "size_px", "precisions", "default", sep="\t")
    for name, artefact in artefacts.items():
        manifest = artefact.manifest
        size = "x".join(map(str, reversed(manifest.image_size)))
        precisions = ",".join(manifest.precisions) or "none"
        row = (name, artefact.version, manifest.num_classes, size, precisions)
        print(*row, "yes" if name == default else "no", sep="\t")


def _read_models(settings: RepositorySettings) -> tuple[dict[str, Artefact], str]:
    from cat_serve.repository import choose_default, find_repository, load_models

    artefacts = load_models(find_repository(settings.model_repository))
    return artefacts, choose_default(artefacts, settings.model)


def _add(commands: Any, name: str, what: str, settings: type[S], run: Callable[[S], None]) -> None:
    """Add a command whose flags are the fields of `settings`."""
    from pydantic_settings import CliSettingsSource

    parser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}. Every flag is also an environment "
        "variable: --log-level is CAT_SERVE_LOG_LEVEL. The flag wins.",
    )  # fmt: skip
    source: CliSettingsSource[Any] = CliSettingsSource(settings, root_parser=parser)
    parser.set_defaults(run=run, settings=settings, source=source)
