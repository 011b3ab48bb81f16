"""`cat-serve serve`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from cat_serve.cli.arguments import add_settings_command, read_models, read_settings

if TYPE_CHECKING:
    from cat_serve.settings import Settings


def add_to(commands: Any) -> None:
    """Add the command."""
    from cat_serve.settings import Settings

    parser = add_settings_command(commands, "serve", "serve the models over HTTP", Settings, serve)
    parser.add_argument(
        "--print-config",
        nargs="?",
        const="text",
        choices=("text", "json"),
        help="print every setting, and where it comes from, instead of serving",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int | None:
    settings = read_settings(arguments)
    if arguments.print_config is None:
        return serve(settings)
    print_config(settings, arguments.print_config)
    return None


def print_config(settings: Settings, form: str) -> None:
    """Print every setting, where it comes from, and no secret."""
    from cat_serve import configuration

    configuration.warn_of_strangers(settings)
    as_json = form == "json"
    print(json.dumps(configuration.as_object(settings)) if as_json else configuration.as_text(settings))  # fmt: skip


def serve(settings: Settings) -> int | None:
    """Serve until a signal: in this process, or as the supervisor of several."""
    from cat_serve import configuration, logs

    logs.configure(settings.log_level, settings.log_format, pid=settings.workers > 1)
    configuration.warn_of_strangers(settings)
    if settings.workers > 1:
        from cat_serve.workers.supervisor import supervise

        return supervise(settings)
    artefacts, _ = read_models(settings)
    from cat_serve.web.server import serve as serve_http

    serve_http(settings, artefacts)
    return None
