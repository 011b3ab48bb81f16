"""Waiting for what is awaited: one event loop in a thread of its own, which all blocking clients of a process share."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the shared loop and return its result; whatever ends the waiting cancels the work.

    A blocking read can only be told how long it may be silent, not when it must end; a task on a loop can be cancelled
    at any moment, so the deadline of a call holds whatever the server does.
    """
    future = asyncio.run_coroutine_threadsafe(work, _running_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # without effect on what is done


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop; the first who asks starts it. Its thread never keeps a process from ending."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="cat-serve-client", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    """Forget the loop of the parent process: its thread is not in the child."""
    global _loop, _lock
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_loop)
