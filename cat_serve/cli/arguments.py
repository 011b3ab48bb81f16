"""Commands whose flags are settings: each is also an environment variable."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic_settings import CliSettingsSource

    from cat_serve.manifest import Artefact
    from cat_serve.settings import RepositorySettings

S = TypeVar("S", bound="RepositorySettings")


def add_settings_command(
    commands: Any, name: str, what: str, settings: type[S], run: Callable[[S], int | None]
) -> argparse.ArgumentParser:
    """Add a command whose flags are the fields of `settings`; `run` gets them read.

    Returns:
        The command's parser, for flags that are no settings.
    """
    from pydantic_settings import CliSettingsSource

    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}. Every flag is also an environment "
        "variable: --log-level is CAT_SERVE_LOG_LEVEL. The flag wins.",
    )  # fmt: skip
    source: CliSettingsSource[Any] = CliSettingsSource(settings, root_parser=parser)
    parser.set_defaults(
        run=lambda arguments: run(read_settings(arguments)), settings=settings, source=source
    )
    return parser


def read_settings(arguments: argparse.Namespace) -> Any:
    """Return the command's settings from flags, then environment, then defaults.

    Raises:
        InvalidInput: a value does not fit; names the variable and the flag.
    """
    from pydantic import ValidationError

    from cat_serve.errors import InvalidInput
    from cat_serve.settings import SECRETS, explain

    source: CliSettingsSource[Any] = arguments.source
    fields = arguments.settings.model_fields
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    for name in SECRETS & given.keys():
        raise InvalidInput(
            f"--{name.replace('_', '-')} would be readable to everybody on this machine.",
            code="bad_settings",
            hint="set the environment variable, or name a file with --api-keys-file",
        )
    try:
        settings = arguments.settings(_cli_settings_source=source(parsed_args=given))
    except ValidationError as error:
        raise explain(error) from error
    settings.came_by_flag(given)
    return settings


def read_models(settings: RepositorySettings) -> tuple[dict[str, Artefact], str]:
    """Return the models of the repository by name, checked against their manifests, and the default's name.

    Raises:
        ArtefactError: there is none, or one is damaged.
        UnknownModel, InvalidInput: see `choose_default`.
    """
    from cat_serve.repository import choose_default, find_repository, load_models

    artefacts = load_models(find_repository(settings.model_repository))
    return artefacts, choose_default(artefacts, settings.model)
