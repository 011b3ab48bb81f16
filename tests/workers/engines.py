"""A fake engine for another process: the test holds its passes back with a file, and reads what it made."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from cat_serve.backends.fake import FakeBackend
from cat_serve.contract import Batch
from cat_serve.manifest import Artefact
from cat_serve.settings import Settings
from cat_serve.workers.supervisor import supervise

FOLDER = "GATED_ENGINE_FOLDER"
WAIT_S = 60.0


def gated(artefact: Artefact) -> FakeBackend:
    """Open an engine that notes every pass, and waits while the folder has a file `closed`."""
    folder = Path(os.environ[FOLDER])

    def before(batch: Batch) -> None:
        with (folder / "passes").open("a") as passes:
            passes.write(f"{len(batch)}\n")
        ends_s = time.monotonic() + WAIT_S
        while (folder / "closed").exists():
            assert time.monotonic() < ends_s
            time.sleep(0.005)

    return FakeBackend(artefact, before=before)


def leave(arguments: object, pipe: Connection) -> None:
    """End at once, as a process that cannot start."""
    pipe.send_bytes(b'{"last": "words"}')
    sys.exit(3)


if __name__ == "__main__":
    sys.exit(supervise(Settings(), gated))
