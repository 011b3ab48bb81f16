"""What the engine process and the workers do alike: log with their pid, and end with an exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import NoReturn

from cat_serve import logs
from cat_serve.commands import OK, explain_failure
from cat_serve.errors import CatServeError
from cat_serve.settings import Settings


def run_process(settings: Settings, serving: Coroutine[object, object, None]) -> NoReturn:
    """Run what the process is for to its end, then exit."""
    logs.configure(settings.log_level, settings.log_format, pid=True)
    try:
        asyncio.run(serving)
    except CatServeError as error:
        sys.exit(explain_failure(error))
    sys.exit(OK)
