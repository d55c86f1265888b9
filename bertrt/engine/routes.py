"""The ways of a prediction: through the caller's own thread, or through the scheduler's.

A caller who finds nobody inside goes through by itself: no thread is faster than one's own. Where
others are inside, what is asked for runs in batches with theirs, which read the weights once for
all. Who is inside is what `bertrt.engine.life` knows; an interrupt that leaves a call behind (in a
traceback that somebody keeps) only makes the next ones take the longer way.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bertrt.engine.batcher import Batcher, ForkedError
from bertrt.engine.batching import Batching, Statistics, Submission
from bertrt.engine.life import Call, Life, this_thread
from bertrt.engine.predictor import Predictor, Sequenced
from bertrt.errors import BertrtError, BusyError

__all__ = ["Routes"]

# Of a batch with more inputs the caller's thread makes the sequences, as long as that may take.
_FEW = 64

# Seconds, more than which nobody waits.
_LONGEST = 1e9


class Routes:
    """What `Engine.predict` and `Engine.submit` do with arguments that were checked."""

    def __init__(
        self,
        life: Life,
        predictor: Predictor,
        batching: Batching,
        beside: Routes | None = None,
    ) -> None:
        """`beside`: another engine's with the same life."""
        self._life = life
        self._predictor = predictor
        self._batcher = Batcher(predictor, batching)
        self._batchers: weakref.WeakSet[Batcher] = (
            weakref.WeakSet() if beside is None else beside._batchers
        )
        self._batchers.add(self._batcher)

    def predict(self, batch: Any, prompt: str | None, on_error: str) -> Any:
        """See `Engine.predict`."""
        with self._life.use("predict") as call:
            if self._is_busy():
                items, single, before = self._predictor.inputs(batch, prompt)
                if len(items) <= _FEW:
                    stay = self._life.stay("predict")
                    with suppress(ForkedError):
                        return _result(self._batcher.submit(items, single, before, on_error, stay))
            requests, single = self._predictor.encode(batch, prompt, on_error)
            results = self._predictor.predict(
                requests, lambda sequences: self._run(sequences, call), pads=call.backend.pads
            )
        return results[0] if single else results

    def _is_busy(self) -> bool:
        """Whether others than the caller are inside, and the scheduler has a thread."""
        # A destructor runs in any thread: one of the scheduler's would wait for itself.
        return self._life.crowd > 1 and not this_thread.serves and self._batcher.start()

    def _run(self, sequences: Sequence[Sequenced], call: Call) -> Sequence[Any]:
        """What is read of each of a batch's sequences."""
        if self._is_busy():
            stay = self._life.stay("predict")
            with suppress(ForkedError):
                found: Sequence[Any] = _result(self._batcher.run(sequences, stay))
                return found
        return self._predictor.run_and_read(call.backend, sequences)

    def submit(
        self,
        batch: Any,
        prompt: str | None,
        on_error: str,
        priority: int,
        deadline: float | None,
    ) -> Submission:
        """See `Engine.submit`."""
        with self._life.use("submit") as call:  # noqa: F841
            items, single, before = self._predictor.inputs(batch, prompt)
            if not self._batcher.start():
                raise BertrtError(
                    "the system gives no thread to run what is submitted; predict needs none"
                )
            return self._batcher.submit(
                items,
                single,
                before,
                on_error,
                self._life.stay("submit"),
                priority=priority,
                deadline=None if deadline is None else float(min(deadline, _LONGEST)),
                bounded=True,
            )

    def statistics(self) -> Statistics:
        """See `Engine.statistics`."""
        return self._batcher.statistics()

    def close(self, timeout: float | None) -> None:
        """See `Engine.close`."""
        for batcher in list(self._batchers):
            batcher.nudge()
        try:
            self._life.close(timeout)
        except BusyError:
            for batcher in list(self._batchers):
                batcher.refuse(self._life.is_closed)
            raise


def _result(submission: Submission) -> Any:
    """The result of what is left to the scheduler; who is interrupted waits for it no more."""
    try:
        return submission.result()
    finally:
        submission.cancel()
