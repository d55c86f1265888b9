"""Whether more requests come than the event loop can read, so that they are told so at little cost.

What is done for a request takes some tenths of a millisecond of the event loop, a refusal in its
protocol's words no less. Under many times the load that a server carries that is all that the loop
does, later and later, while those that it let in wait for it.
"""

from __future__ import annotations

import asyncio

from bertrt.serve.models import Models

__all__ = ["Crowd"]

# Seconds between ticks, and how long none has to be late before requests are taken again.
_TICK, _CALM = 0.1, 0.3
# By how much a tick may be late: for each second that a request may wait, and at least.
_LATE, _LEAST = 0.1, 0.1
# With fewer connections it is others who make the event loop late.
_FEW = 256
# So many requests may come at a time, and so many for each second that one may wait, if those are
# more: what the event loop does for them takes a tenth of that.
_AT_ONCE = 256
# Where the queue is full, so many of those that come at a time are told in their protocol's words.
_WORDED = 8


class Crowd:
    """The requests that come. Of one event loop: its methods are called there.

    Attributes:
        late: whether the event loop does not get round to what has come.
    """

    def __init__(self, models: Models, wait_seconds: float) -> None:
        """`wait_seconds`: what a request may wait."""
        self.late = False
        self._models = models
        self._most = max(_AT_ONCE, round(_AT_ONCE * wait_seconds))
        self._may_be_late = max(_LEAST, _LATE * wait_seconds)
        # Those that were read one after the other; what they do is still to come.
        self._coming = 0
        self._ticked = self._late_until = 0.0

    def comes(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Count a request; whether it is one too many, as then are those behind it."""
        if not self._coming:
            # Before the tasks of these requests.
            loop.call_soon(self._all_came)
        self._coming += 1
        self.late = self.late or self._coming > self._most
        return self.late or (self._coming > _WORDED and self._models.full)

    def _all_came(self) -> None:
        self._coming = 0

    def tick(self, now: float, connections: int) -> None:
        """Called every 0.1 seconds, where the event loop is not late.

        Args:
            now: its time, in seconds.
            connections: that are open.
        """
        if connections > _FEW and now - self._ticked > _TICK + self._may_be_late:
            self._late_until = now + _CALM
        self._ticked = now
        self.late = now < self._late_until or (self.late and self._models.full)
