"""What programs say and see of the scheduler: its limits, a submission, and what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from bertrt.engine.workers import raise_interrupt
from bertrt.errors import InvalidInputError, InvalidTypeError, QueueFull

__all__ = ["Batching", "Report", "Statistics", "Submission"]


@dataclass(frozen=True)
class Batching:
    """How an engine fills batches from what several callers ask for; see docs/batching.md.

    Attributes:
        tokens: the tokens of a batch, at most; a longer sequence runs alone. Where the backend
            pads, padding counts. Activations take memory by them, BERT large's 64 MiB at 4,096.
            None: what suits the backend, see `Engine.batch_tokens`.
        queue: how many inputs may wait in `Engine.submit`, those that run not counted.
    """

    tokens: int | None = None
    queue: int = 8192

    def __post_init__(self) -> None:
        for name in ("tokens", "queue"):
            value = getattr(self, name)
            if value is None and name == "tokens":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidTypeError(f"{name} is a {type(value).__name__}; expected an int")
            if value < 1:
                raise InvalidInputError(f"{name} is {value}; expected 1 or more")

    def check_room(self, waiting: int, inputs: int) -> None:
        """Raise QueueFull where so many inputs may not wait beside those that do."""
        if inputs > self.queue:
            raise QueueFull(
                f"{inputs} inputs are above the limit of {self.queue} that may wait: submit them "
                "in parts of so many at most, or load the engine with a larger Batching(queue=...)"
            )
        if waiting + inputs > self.queue:
            raise QueueFull(
                f"{waiting} inputs wait, and {inputs} more would be above the limit of "
                f"{self.queue}: submit them later, or in smaller parts, or load the engine with a "
                "larger Batching(queue=...)"
            )


@dataclass(frozen=True)
class Report:
    """What an answer took.

    Attributes:
        tokens: of each input, special ones included, of all windows that were made of it; 0 of one
            that had an error.
        tokenize: the seconds in which its texts were tokenized, together with others.
        queue: the seconds that it waited, for either.
        execute: the seconds of the batches that its sequences were in.
    """

    tokens: tuple[int, ...]
    tokenize: float
    queue: float
    execute: float


@dataclass(frozen=True)
class Statistics:
    """What an engine's scheduler has done since it was loaded, and has to do.

    Attributes:
        waiting: the inputs that wait.
        batches: the batches that have run.
        sequences, tokens: what was in them, together.
        by_sequences, by_tokens: how many batches had so many sequences or tokens: up to each power
            of two, and more than the one before it.
    """

    waiting: int = 0
    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    by_sequences: Mapping[int, int] = field(default_factory=dict)
    by_tokens: Mapping[int, int] = field(default_factory=dict)


class _Condition(threading.Condition):
    """One whose lock no interrupt leaves behind: a ``with`` block calls what is written in C, and
    no exception comes between that and the block. Threading's own methods are Python's.

    `acquire` and `release` are what `concurrent.futures.wait` and `as_completed` call, in loops of
    Python's. What an interrupt there leaves behind, the next ones of the same thread set right.
    """

    _lock: Any
    _waiters: Any
    __enter__ = property(lambda self: self._lock.__enter__)
    __exit__ = property(lambda self: self._lock.__exit__)
    acquire: Any = property(lambda self: self._acquire, lambda self, _: None)
    release: Any = property(lambda self: self._release, lambda self, _: None)

    def _acquire(self) -> None:
        if not self._lock._is_owned():
            self._lock.acquire()

    def _release(self) -> None:
        if self._lock._is_owned():
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Condition.wait`: who leaves it has the lock, even by an interrupt."""
        waiter = threading.Lock()
        waiter.acquire()
        saved: Any = None
        self._waiters.append(waiter)
        try:
            saved = self._lock._release_save()
            if timeout is None:
                return waiter.acquire()
            return waiter.acquire(timeout > 0, timeout if timeout > 0 else -1)
        finally:
            if saved is not None:
                self._lock._acquire_restore(saved)
            elif not self._lock._is_owned():
                self._lock.acquire()
            with suppress(ValueError):
                self._waiters.remove(waiter)


class _Waiters(list[Any]):
    """Those of `concurrent.futures.wait` and `as_completed`, whose event has a lock of Python's."""

    def append(self, waiter: Any) -> None:
        """See list; nobody waits for its event yet."""
        waiter.event._cond = _Condition()
        super().append(waiter)


# So long the scheduler waits for a submission's lock, in seconds: longer than anybody needs it.
_MOMENT = 0.001


class Submission(Future[Any]):
    """A `concurrent.futures.Future` of what `Engine.predict` returns for a batch, which asyncio may
    await, too: who is cancelled there cancels it.

    It can be cancelled until its last part has begun to run. Callbacks are called by a thread that
    does nothing else: one that takes its time holds up other callbacks, and no batch.

    Attributes:
        report: what it took; None until there is a result.
    """

    report: Report | None = None
    _cancels: Callable[[], None] | None = None
    _condition: _Condition

    def __init__(self) -> None:
        super().__init__()
        # A thread that is interrupted as it waits must not keep the scheduler's from going on.
        self._condition = _Condition()
        self._waiters = _Waiters()
        # Whether it runs or is cancelled: who says so first, in a step of the interpreter's own.
        self._fate: dict[str, str] = {}

    def cancels(self, call: Callable[[], None] | None) -> None:
        """Have a function called when it is cancelled."""
        self._cancels = call

    # The scheduler asks these, and so they take no lock, which an interrupt may have left behind.

    def cancelled(self) -> bool:
        """See `concurrent.futures.Future.cancelled`."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED")

    def done(self) -> bool:
        """See `concurrent.futures.Future.done`."""
        return self._state == "FINISHED" or self.cancelled()

    def running(self) -> bool:
        """See `concurrent.futures.Future.running`."""
        return self._fate.get("it") == "runs" and not self.done()

    @property
    def unwanted(self) -> bool:
        """Whether it is cancelled, or about to be."""
        return self.cancelled() or self._fate.get("it") == "cancelled"

    def begin(self) -> bool:
        """For the scheduler: from here on it cannot be cancelled; False: it is."""
        return self._fate.setdefault("it", "runs") == "runs"

    def end(self, result: Any, error: BaseException | None, report: Report | None) -> None:
        """For the scheduler: have everybody told, at once or, while somebody has the lock, later.
        That may be for ever where an interrupt came in `wait` or `as_completed`, which take it in
        code of Python's."""
        if self._condition._lock.acquire(timeout=_MOMENT):
            self._end(result, error, report)
        else:
            _patience.wait(self, result, error, report)

    def _end(self, result: Any, error: BaseException | None, report: Report | None) -> None:
        """With the lock, which is let go of."""
        try:
            if self._state in ("FINISHED", "CANCELLED_AND_NOTIFIED"):  # by somebody else
                return
            if self.unwanted:
                # Who waits for one of several futures learns of it here.
                super().cancel()
                self.set_running_or_notify_cancel()
            elif error is not None:
                self.set_exception(error)
            else:
                self.report = report
                self.set_result(result)
        finally:
            self._condition._lock.release()

    def cancel(self) -> bool:
        """See `concurrent.futures.Future.cancel`."""
        cancelled = self._fate.setdefault("it", "cancelled") == "cancelled" and super().cancel()
        call = self._cancels
        if cancelled and call is not None:
            call()
        return cancelled

    def result(self, timeout: float | None = None) -> Any:
        """See `concurrent.futures.Future.result`."""
        self._wait(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `concurrent.futures.Future.exception`."""
        self._wait(timeout)
        return super().exception()

    def _wait(self, timeout: float | None) -> None:
        """Wait until it is done: by a lock of one's own, which is let go of last of all. Who waits
        for the condition is woken while the other thread still has much to do."""
        if self.done():
            return
        ends = threading.Lock()
        ends.acquire()
        super().add_done_callback(lambda _: ends.release())
        if not (ends.acquire() if timeout is None else ends.acquire(timeout=max(0.0, timeout))):
            raise TimeoutError()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See `concurrent.futures.Future.add_done_callback`."""
        super().add_done_callback(lambda _: _caller.call(fn, self))

    def __await__(self) -> Generator[Any, None, Any]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def tell() -> None:
            if not done.done():
                done.set_result(None)

        def call(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        super().add_done_callback(call)
        try:
            yield from done
        finally:
            self.cancel()
        return self.result()

    def renew(self) -> None:
        """In a forked child: the parent's other threads may have held its lock."""
        self._condition._lock._at_fork_reinit()


class _Patience:
    """A thread that tells what submissions gave whose lock the scheduler could not have."""

    def __init__(self) -> None:
        self._untold: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def wait(self, submission: Submission, *end: Any) -> None:
        """Have it told as soon as its lock is free, unless nobody refers to it any more."""
        self._untold.put((weakref.ref(submission), *end))
        if self._thread is None:
            # Two at once start two, which share the work.
            thread = threading.Thread(target=self._work, name="bertrt-patience", daemon=True)
            with suppress(RuntimeError):  # the system gives none: the next one may get it
                thread.start()
                self._thread = thread

    def _work(self) -> None:
        while True:
            untold, pause = [self._untold.get()], _MOMENT
            while untold:
                with suppress(Empty):
                    while True:
                        untold.append(self._untold.get_nowait())
                        pause = _MOMENT
                untold = [one for one in untold if not self._try(*one)]
                time.sleep(pause)
                pause = min(2 * pause, 0.1)

    def _try(self, reference: weakref.ref[Submission], *end: Any) -> bool:
        submission = reference()
        if submission is None:
            return True
        if not submission._condition._lock.acquire(blocking=False):
            return False
        try:
            submission._end(*end)
        except BaseException:  # nothing may keep the others from being told
            logging.getLogger(__name__).exception("a submission cannot be told")
        return True


_patience = _Patience()


class _Caller:
    """A thread that calls what may take its time; it starts with the first call."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[Future[Any]], object], Submission]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[Future[Any]], object], submission: Submission) -> None:
        """Have it called."""
        self._calls.put((function, submission))
        if self._thread is None:
            # Two at once start two, which share the calls.
            thread = threading.Thread(target=self._work, name="bertrt-callbacks", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system gives none: late is better than never
                raise_interrupt(error)
                with suppress(Empty):
                    while True:
                        self._do(*self._calls.get_nowait())
            else:
                self._thread = thread

    def _work(self) -> None:
        while True:
            self._do(*self._calls.get())

    def _do(self, function: Callable[[Future[Any]], object], submission: Submission) -> None:
        try:
            function(submission)
        except BaseException:  # a SystemExit, too, is the callback's own
            logging.getLogger(__name__).exception("exception calling callback for a submission")


_caller = _Caller()


def _after_fork() -> None:
    global _caller, _patience
    _caller, _patience = _Caller(), _Patience()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
