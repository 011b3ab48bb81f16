"""A line on stderr that says what runs, for how long it has run, and how it went."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from tqdm import tqdm

EVERY_S = 1.0


class Progress:
    """A bar of so many experiments."""

    def __init__(self, count: int) -> None:
        self._bar = tqdm(total=count, unit="experiment", dynamic_ncols=True)
        self._left = threading.Event()
        self._name, self._since_s = "", time.monotonic()
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._ticking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._left.set()
        self._ticking.join()
        self._bar.close()

    def begin(self, name: str) -> None:
        """Say what runs now."""
        self._name, self._since_s = name, time.monotonic()

    def end(self, outcome: str) -> None:
        """Say how it ended."""
        self._bar.write(f"{self._name}: {outcome} after {self._lasted()}", file=sys.stderr)
        self._bar.update()

    def _lasted(self) -> str:
        return f"{time.monotonic() - self._since_s:.0f} s"

    def _tick(self) -> None:
        while not self._left.wait(EVERY_S):
            self._bar.set_postfix_str(f"{self._name}, {self._lasted()}")
