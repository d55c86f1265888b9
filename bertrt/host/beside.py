"""Work in a thread of its own, where the system gives one."""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from collections.abc import Callable

__all__ = ["Beside"]


class Beside:
    """Calls `work` once, in a thread if one comes to it, else in the one that waits.

    Nothing waits for the thread to begin: one that the system does not give, that dies before its
    first instruction for want of memory, or that a fork leaves behind, is not missed. Nothing is
    held while it is made, so that a signal handler may do the same meanwhile.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._process = os.getpid()
        self._claim, self._running = threading.Lock(), threading.Lock()
        self._running.acquire()
        # Not threading.Thread, whose start waits until the thread runs.
        with contextlib.suppress(RuntimeError, MemoryError):
            _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._work()
        except BaseException as error:  # it is the waiting thread's
            self._error = error
        finally:
            self._running.release()

    def wait(self) -> None:
        """Come back when the work is done; raises what it raised. To be called once."""
        if os.getpid() != self._process or self._claim.acquire(blocking=False):
            self._work()
            return
        self._running.acquire()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose traceback shows this frame
