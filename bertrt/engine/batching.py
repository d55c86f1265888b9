"""What programs say and see of the scheduler: its limits, a submission, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError

__all__ = ["Batching", "Report", "Statistics", "Submission"]


@dataclass(frozen=True)
class Batching:
    """How an engine fills batches from what several callers ask for; see docs/batching.md.

    Attributes:
        tokens: the tokens of a batch, at most; a longer sequence runs alone. Where the backend
            pads, padding counts. Activations take memory by them, BERT large's 64 MiB at 4,096,
            where a matrix product has long reached its full speed.
        queue: how many inputs may wait in `Engine.submit`, those that run not counted.
    """

    tokens: int = 4096
    queue: int = 8192

    def __post_init__(self) -> None:
        for name in ("tokens", "queue"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidTypeError(f"{name} is a {type(value).__name__}; expected an int")
            if value < 1:
                raise InvalidInputError(f"{name} is {value}; expected 1 or more")


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


class Submission(Future[Any]):
    """A `concurrent.futures.Future` of what `Engine.predict` returns for a batch.

    Attributes:
        report: what it took; None until there is a result.

    `cancel` works until its last part has begun to run.
    """

    report: Report | None = None
    told = False
    _cancels: Callable[[], None] | None = None

    def cancels(self, call: Callable[[], None] | None) -> None:
        """Have a function called when it is cancelled."""
        self._cancels = call

    def cancel(self) -> bool:
        """See `concurrent.futures.Future.cancel`."""
        cancelled = super().cancel()
        call = self._cancels
        if cancelled and call is not None:
            call()
        return cancelled

    def renew(self) -> None:
        """In a forked child: the parent's other threads may have held its lock."""
        self._condition._lock._at_fork_reinit()  # type: ignore[attr-defined]
