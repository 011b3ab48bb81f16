"""Show how far a build is, and let Ctrl-C end one: TensorRT reports its phases, nested in each other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WHOLE = 1000  # of the bar; phases have between one and thousands of steps


@dataclass
class Phase:
    """One phase that has begun and not ended."""

    name: str
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Turns phases and their steps into one share of the whole; safe to call from several threads.

    A phase runs inside one step of its parent, so the share only grows while a build lasts.

    Args:
        bar: a tqdm bar of WHOLE.
    """

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._phases: dict[str, Phase] = {}
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase inside a step of `parent`."""
        with self._lock:
            self._phases[name] = Phase(name, parent, max(1, steps))
            self._bar.set_description(name, refresh=False)
            self._show()

    def step(self, name: str) -> bool:
        """Count one step of a phase; return whether the build is to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done += 1
                self._show()
        return not self.cancelled

    def finish(self, name: str) -> None:
        """End a phase, whether or not all its steps were reported."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None:
                self._move(WHOLE)

    def _show(self) -> None:
        roots = [phase for phase in self._phases.values() if phase.parent not in self._phases]
        self._move(int(WHOLE * max(self._share(root) for root in roots)) if roots else 0)

    def _share(self, phase: Phase) -> float:
        """Return how much of a phase is done, 0..1, with the part of its current step that its children did."""
        children = [
            self._share(each) for each in self._phases.values() if each.parent == phase.name
        ]
        return min(1.0, (phase.done + min(1.0, sum(children))) / phase.steps)

    def _move(self, to: int) -> None:
        self._bar.update(max(0, to - self._bar.n))  # children come and go; a bar never goes back


@contextmanager
def progress_monitor(trt: Any, what: str) -> Iterator[Any]:
    """Yield what a builder reports to, with a bar on stderr; Ctrl-C ends the build at its next step.

    TensorRT calls from C++ that no Python exception may cross, so an interrupt is kept until the build has ended.

    Raises:
        KeyboardInterrupt: the build was ended by Ctrl-C.
    """
    from tqdm import tqdm

    with tqdm(total=WHOLE, bar_format="{desc}{percentage:3.0f}% {bar} {elapsed}") as bar:
        progress = BuildProgress(bar)
        bar.set_description(what)
        with _interrupts_kept(progress):
            yield _monitor(trt, progress)
    if progress.cancelled:
        raise KeyboardInterrupt


def _monitor(trt: Any, progress: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


@contextmanager
def _interrupts_kept(progress: BuildProgress) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return

    def keep(*_: object) -> None:
        progress.cancelled = True

    before = signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
