"""Work that no scheduler sees: a little at a time, each in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from bertrt.serve.refusals import Refusal

__all__ = ["Turns"]


class Turns:
    """Turns at such work. Of one event loop: its methods are called there."""

    def __init__(self, at_once: int, waiting: int, what: str) -> None:
        """`at_once`: how many have a turn at a time; `waiting`: how many may wait for one; `what`:
        what they are called."""
        self._turns = asyncio.Semaphore(at_once)
        self._most, self._what = waiting, what
        self._waiting = 0

    async def do(self, work: Callable[[Callable[[], bool]], Any]) -> Any:
        """Do work in a thread.

        Args:
            work: what is done; it is given a function that tells whether anybody still waits for
                it. Where nobody does, it goes on to where it looks, or its end, and holds its turn.

        Raises:
            Refusal: 429 too many wait. And what the work raises.
        """
        if self._waiting >= self._most:
            raise Refusal(429, f"{self._most} {self._what} wait already", retry_after=1)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        gone = threading.Event()

        def ended(done: asyncio.Future[Any]) -> None:
            self._turns.release()
            if not done.cancelled():
                done.exception()  # asked for, so that none is logged as never seen

        try:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(None, work, lambda: not gone.is_set())
        except BaseException:  # the loop is about to end
            self._turns.release()
            raise
        running.add_done_callback(ended)
        try:
            return await asyncio.shield(running)
        finally:
            gone.set()
