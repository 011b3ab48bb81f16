"""Flags of commands that open an engine in their own process: settings of the server, under the same names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from cat_serve.manifest import Artefact
    from cat_serve.settings import Settings

FLAGS = (
    "model_repository", "model", "backend", "provider", "precision", "threads", "checkpoints",
)  # fmt: skip
TYPES = {"threads": int}


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; one that is not given is left to the environment, `CAT_SERVE_PROVIDER` for `--provider`."""
    from cat_serve.settings import Settings

    group = parser.add_argument_group("engine", "also as environment variables, CAT_SERVE_*")
    for name in FLAGS:
        field = Settings.model_fields[name]
        choices = [each for each in get_args(field.annotation) if isinstance(each, str)]
        default = "" if field.default is None else f" ({field.default})"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=TYPES.get(name, str),
            choices=choices or None,
            metavar=None if choices else name.upper(),
            default=argparse.SUPPRESS,
            help=f"{field.description}{default}",
        )


def engine_settings(arguments: argparse.Namespace, **more: object) -> Settings:
    """Return the settings from flags, then `more`, then environment, then defaults.

    Args:
        more: settings that the command has other flags for; None: not given.

    Raises:
        InvalidInput: a value does not fit; names the variable and the flag.
    """
    from pydantic import ValidationError

    from cat_serve.settings import Settings, explain

    given = {name: value for name, value in vars(arguments).items() if name in FLAGS}
    given |= {name: value for name, value in more.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise explain(error) from error


def chosen_model(settings: Settings) -> Artefact:
    """Return the model that the settings mean, checked against its manifest.

    Raises: see `read_models`.
    """
    from cat_serve.cli.arguments import read_models

    artefacts, default = read_models(settings)
    return artefacts[default]
