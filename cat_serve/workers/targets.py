"""What the children run. The supervisor names these, and imports nothing that only they need."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any


def engine_main(arguments: Any, pipe: Connection) -> None:
    """See `engine.main`; takes the fields of `EngineArguments`."""
    from cat_serve.workers.engine import EngineArguments, main

    main(EngineArguments(*arguments), pipe)


def worker_main(arguments: Any, pipe: Connection) -> None:
    """See `worker.main`; takes the fields of `WorkerArguments`."""
    from cat_serve.workers.worker import WorkerArguments, main

    main(WorkerArguments(*arguments), pipe)
