"""`cat-serve serve`."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from cat_serve.cli.arguments import add_settings_command, read_models

if TYPE_CHECKING:
    from cat_serve.settings import Settings


def add_to(commands: Any) -> None:
    """Add the command."""
    from cat_serve.settings import Settings

    add_settings_command(commands, "serve", "serve the models over HTTP", Settings, serve)


def serve(settings: Settings) -> None:
    """Serve until a signal."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    artefacts, _ = read_models(settings)
    from cat_serve.web.server import serve as serve_http

    serve_http(settings, artefacts)
