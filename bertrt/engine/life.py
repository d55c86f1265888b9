"""An engine's life: who is inside, for how long the backend stays open, and what a fork leaves.

An exception can come between any two instructions: a KeyboardInterrupt, or what a signal handler
raises. So nothing here is counted up and down, and no call holds a lock. What it holds is an object
that its frame alone refers to: it is gone when the frame is, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from numbers import Real
from types import FrameType, TracebackType
from typing import Any

from bertrt.backends.base import Backend
from bertrt.errors import (
    BertrtError,
    BusyError,
    InvalidInputError,
    InvalidTypeError,
)

__all__ = ["Call", "Life", "Stay", "this_thread"]

# How often a call that nobody is seen to be inside of is looked for again. A thread's stack may
# change while it is read.
_LOOKS = 3


class _ThisThread(threading.local):
    serves = False  # it is a scheduler's


this_thread = _ThisThread()


def _frame_of(thread: int) -> FrameType | None:
    """The frame that a thread is in; None of one that is gone.

    A collection of garbage that began within the interpreter's own function would run destructors
    while no thread can start, and one that is about to start would hold the interpreter's lock for
    good: before Python 3.11.9, https://github.com/python/cpython/issues/106883. So it is put off,
    and taken up again, within one step of the interpreter. Nothing has a name here: a frame among
    its own names would live on.
    """
    if sys.version_info >= (3, 12) or not gc.isenabled():
        return sys._current_frames().get(thread)
    call = operator.methodcaller("__call__")
    return tuple(map(call, (gc.disable, sys._current_frames, gc.enable)))[1].get(thread)


class _Lease:
    """A backend, which is closed when the last reference to this goes."""

    closes = True

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __del__(self) -> None:
        if self.closes and hasattr(self, "backend"):
            self.backend.close()


class Call:
    """A thread's stay inside an engine: it begins when this is made, and is over when a ``with``
    block of it ends, or when nothing refers to it any more."""

    __slots__ = ("__weakref__", "among", "lease", "method", "over", "since", "thread")

    def __init__(self, method: str) -> None:
        self.method = method
        self.thread = threading.get_ident()
        self.since = time.monotonic()
        self.lease: _Lease | None = None
        self.over = False
        self.among: set[weakref.ref[Call]] = set()

    @property
    def backend(self) -> Backend:
        """What the engine runs on, open until the call is over."""
        assert self.lease is not None
        return self.lease.backend

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.over = True
        # A traceback that somebody keeps refers to the frame and so to this: not to the backend.
        self.lease = None
        self.among.discard(weakref.ref(self))

    def is_under_way(self) -> bool:
        """Whether a frame that its thread is in refers to it. Where an exception came before the
        ``with`` block, or at its very end, only the exception's traceback may."""
        frame = _frame_of(self.thread)
        while frame is not None:
            code = frame.f_code
            named = code.co_flags & inspect.CO_OPTIMIZED and "call" in code.co_varnames
            if named and frame.f_locals.get("call") is self:
                return True
            frame = frame.f_back
        return False


class Stay(Call):
    """What a thread has left for others to do: over when they say so, or when nothing refers to it
    any more. No thread's frame has it; but until it is left to others, the thread's own call is
    under way, and behind an interrupt of that nobody waits for this."""

    __slots__ = ("left",)

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.thread = 0
        self.left = False

    def is_under_way(self) -> bool:
        """Whether others have it, and it is not over."""
        return self.left and not self.over


class Life:
    """A backend from loading to closing, and the calls that use it."""

    def __init__(self, load: Callable[[], Backend], name: str) -> None:
        """`load` makes the backend, here and in forked children that need one of their own; `name`
        is what errors call it, up to a parenthesis that is open."""
        self._load = load
        self._name = name
        self._lease: _Lease | None = _Lease(load())
        self._begun: set[weakref.ref[Call]] = set()
        self._loading = threading.RLock()
        self.closed = False
        _lives.add(self)

    def __str__(self) -> str:
        return f"{self._name}{', closed' if self.closed else ''})"

    def use(self, method: str) -> Call:
        """A call of this thread, for ``with life.use("name") as call``, under this name.

        Raises:
            BertrtError: it is closed.
        """
        call = self._begin(method)
        self._enter(call)
        return call

    def stay(self, method: str) -> Stay:
        """Likewise for what others will do: whoever does it ends it as a ``with`` block would."""
        stay = Stay(method)
        self._add(stay)
        self._enter(stay)
        return stay

    @property
    def crowd(self) -> int:
        """How many are inside, the caller among them; more, where somebody keeps the traceback of
        an interrupt."""
        return len(self._begun)

    def _begin(self, method: str) -> Call:
        call = Call(method)
        self._add(call)
        return call

    def _enter(self, call: Call) -> None:
        # From here on close() sees the call; so what it has done before, the call sees.
        if self.closed:
            raise self.is_closed()
        call.lease = self._lease or self._load_again()

    def _add(self, call: Call) -> None:
        # Each a step of the interpreter's own; the end of the frame, and so of the call, undoes it.
        call.among = self._begun
        self._begun.add(weakref.ref(call, self._begun.discard))

    def _open(self) -> list[Call]:
        found = [ref() for ref in self._begun.copy()]
        return [call for call in found if call is not None and not call.over]

    def _load_again(self) -> _Lease:
        # The parent's backend did not survive the fork.
        with self._loading:
            if self._lease is None and not self.closed:
                lease = _Lease(self._load())
                self._lease = lease
                # A signal handler, or another thread, may have closed it meanwhile.
                if not self.closed:
                    return lease
                self._lease = None
            found = self._lease
            if found is None:
                raise self.is_closed()
            return found

    def is_closed(self) -> BertrtError:
        """The error for what comes after the end."""
        return BertrtError(f"{self} cannot be used any more: load it again")

    def close(self, timeout: float | None) -> None:
        """See `Engine.close`."""
        if timeout is not None:
            if not isinstance(timeout, Real) or isinstance(timeout, bool):
                raise InvalidTypeError(
                    f"timeout is a {type(timeout).__name__}; expected a number, or None"
                )
            if not timeout >= 0:
                raise InvalidInputError(f"timeout is {timeout}; expected seconds, 0 or more")
            # A Fraction, or an int that no float holds, is a number, too.
            timeout = float(min(timeout, threading.TIMEOUT_MAX))
        with self._begin("close") as call:
            self.closed = True
            lease, self._lease = self._lease, None
            try:
                busy = self._wait(call, timeout)
            finally:
                # Of the last reference the backend is closed: here, or at the end of a call.
                del lease
            if busy:
                raise BusyError(
                    f"{self} takes no new calls, and after {timeout:g} seconds some are still "
                    f"under way: {_describe(busy)}. What it holds is let go of when they are over; "
                    "wait for these threads, or give close() a longer timeout"
                )

    def _wait(self, closing: Call, timeout: float | None) -> list[Call]:
        """Wait for calls to be over; what is still open when the time is.

        Not for those of threads that wait here themselves, the caller's among them: a thread that
        waits inside a call, in a signal handler or a callback, is what that call waits for.
        """
        unseen: dict[Call, int] = {}
        pause = 0.0005
        while True:
            calls = self._open()
            waiting = {call.thread for call in calls if call.method == closing.method}
            found = [call for call in calls if call.thread not in waiting]
            for call in found:
                unseen[call] = 0 if call.is_under_way() else unseen.get(call, 0) + 1
            found = [call for call in found if unseen[call] < _LOOKS]
            if not found:
                return []
            left = float("inf") if timeout is None else closing.since + timeout - time.monotonic()
            if left <= 0:
                return found
            pause = min(2 * pause, 0.05)
            time.sleep(min(pause, left))

    def after_fork(self) -> None:
        """In a forked child, where no thread of the parent lives on: not those of the backend, and
        none that was inside or loading, but for the one that forked."""
        before, self._lease = self._lease, None
        if before is not None:
            before.closes = False
            if before.backend.survives_fork:
                self._lease = _Lease(before.backend)
            else:
                # Never destroyed, even at the child's end: that would wait for threads that do not
                # exist there.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(before.backend))
        mine = [call for call in self._open() if call.thread == threading.get_ident()]
        self._begun = set()
        for call in mine:
            self._add(call)
            call.lease = self._lease or call.lease
        self._loading = threading.RLock()


def _describe(calls: list[Call]) -> str:
    names: dict[Any, str] = {thread.ident: thread.name for thread in threading.enumerate()}
    now = time.monotonic()
    return ", ".join(
        call.method
        + (f" in thread {names.get(call.thread, call.thread)!r}" if call.thread else "")
        + f", for {now - call.since:.1f} s"
        for call in calls
    )


# Those of this process, for the fork hook.
_lives: weakref.WeakSet[Life] = weakref.WeakSet()


def _after_fork() -> None:
    for life in list(_lives):
        life.after_fork()
    if _lives:
        # The tokenizers library gives up its threads in a child, and says so on stderr unless it
        # has been told to.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
