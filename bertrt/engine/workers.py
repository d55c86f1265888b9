"""The scheduler's two threads: started, woken, and gone with it.

What wakes a thread, and what sends it home, is something in its queue, put there by one step of the
interpreter's own, so that an interrupt leaves nothing half-done. The first thread is woken always;
the second one, where the first is at work, since it may be at it for long. So a lone caller's work
stays with one thread, which has what it needs in its core's caches.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from bertrt.engine.life import this_thread
from bertrt.host.floats import usual_errors

__all__ = ["Workers", "raise_interrupt"]

_COUNT = 2


def raise_interrupt(error: RuntimeError) -> None:
    """Raise the interrupt that an error of a thread's start stands for, if it does: one that comes
    where threading takes a lock again has it release what it does not hold, which is a RuntimeError
    as well."""
    before = error.__context__
    if before is not None and not isinstance(before, Exception):
        raise before


class Owner(Protocol):
    """Whom the threads work for."""

    def serve(self, number: int) -> None:
        """Do what there is to do, as the thread of that number."""
        ...


class Workers:
    """The threads of one scheduler, which they do not keep from going: only what is in a queue does
    that, until a thread has taken it."""

    def __init__(self, owner: Owner) -> None:
        self._queues: tuple[SimpleQueue[Owner | weakref.ref[Owner]], ...] = tuple(
            SimpleQueue() for _ in range(_COUNT)
        )
        # When the owner is gone, its reference is put into the queue, behind what woke the thread.
        self._owners = [weakref.ref(owner, queue.put) for queue in self._queues]
        self._lock = threading.Lock()
        self._first_works = False
        self.count = 0

    def start(self) -> bool:
        """Have threads; whether there is any."""
        for _ in range(_COUNT - self.count):  # one too many leaves by itself
            try:
                threading.Thread(target=_work, args=(self,), name="bertrt", daemon=True).start()
            except RuntimeError as error:  # the system gives none
                raise_interrupt(error)
                return self.count > 0
        return True

    def wake(self, owner: Owner) -> None:
        """Have a thread look for something to do."""
        first, second = self._queues
        first.put(owner)
        # What there is to do was there before this look: if the thread begins later, it finds it.
        if self._first_works and self.count > 1:
            second.put(owner)

    def wake_other(self, owner: Owner, number: int) -> None:
        """Have the other thread look for something to do; the caller is thread `number`."""
        if self.count > 1:
            self._queues[1 - number].put(owner)

    def looks(self, number: int) -> None:
        """Of what thread `number` was woken for, it sees all that there is now."""
        queue = self._queues[number]
        if not queue.empty():
            with suppress(Empty):
                while True:
                    queue.get_nowait()

    def join(self) -> int | None:
        """The number of a thread that has begun; None: there are enough, or there is no owner."""
        with self._lock:
            if self.count == _COUNT or self._owners[0]() is None:
                return None
            self.count += 1
            return self.count - 1

    def work(self, number: int) -> None:
        """What thread `number` does, until the owner is gone."""
        queue = self._queues[number]
        # Between its tasks a thread holds nothing of the engine.
        while not isinstance(owner := queue.get(), weakref.ref):
            if number == 0:
                self._first_works = True
            owner.serve(number)
            del owner
            if number == 0:
                self._first_works = False


def _work(workers: Workers) -> None:
    if (number := workers.join()) is None:
        return
    this_thread.serves = True
    with usual_errors():
        workers.work(number)
