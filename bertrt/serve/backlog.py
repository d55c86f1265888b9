"""How long a request would wait, so that it is told at once where that is too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bertrt.errors import QueueFull
from bertrt.text.encoding import Encoding

__all__ = ["Backlog", "Place"]

# What an input takes beside its text, and a token, in characters.
_INPUT, _TOKEN = 16, 4
# What of the pace the last run decides.
_LAST = 0.05


@dataclass
class Place:
    """Of a run among the others: `size` is what there is to do for it, `ahead` what there was to
    do when it came at `since`, itself included."""

    size: int
    ahead: int
    since: float


class Backlog:
    """What a model has to do, in characters, and its pace, in seconds for one.

    The pace is that of runs that have waited: alone a text takes longer than its share of a batch.
    So nothing is refused before something has waited.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds`: what may be waited."""
        self._most, self._clock = seconds, clock
        self._size = 0
        self._pace = 0.0

    @property
    def seconds(self) -> float:
        """What a request would wait that comes now."""
        return self._size * self._pace

    @property
    def full(self) -> bool:
        """Whether that is too long."""
        return self.seconds > self._most

    def check(self) -> None:
        """Raise QueueFull where a request would wait too long."""
        if self.full:
            raise QueueFull(
                f"a request would wait {self.seconds:.1f} s; at most {self._most:g} s are waited: "
                "ask later"
            )

    def enter(self, inputs: Iterable[Any], longest: int) -> Place:
        """Stand in line.

        Args:
            inputs: as for `Engine.submit`.
            longest: tokens of an input that are read at most.
        """
        size = sum(_INPUT + min(_characters(item), _TOKEN * longest) for item in inputs)
        self._size += size
        return Place(size, self._size, self._clock())

    def leave(self, place: Place, *, ran: bool) -> None:
        """Be done; `ran`: with an answer."""
        self._size -= place.size
        if ran and place.ahead >= 2 * place.size:
            pace = (self._clock() - place.since) / place.ahead
            self._pace += (pace - self._pace) * (_LAST if self._pace else 1.0)


def _characters(item: Any) -> int:
    if isinstance(item, Encoding):
        return _TOKEN * len(item.ids)
    return len(item) if isinstance(item, str) else sum(map(len, item))
