"""A model at work under a name: inputs to answers, by its engine or from what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bertrt.engine import Encoding, Engine, Statistics, Submission
from bertrt.errors import BertrtError, DeadlineExceeded
from bertrt.results import Embedding
from bertrt.serve.cache import Cache
from bertrt.serve.metrics import Metrics
from bertrt.serve.refusals import refusal_of

__all__ = ["Answered", "Served"]


@dataclass(frozen=True)
class Answered:
    """What became of a request's inputs.

    Attributes:
        results: for each its result, or the refusal that says why there is none.
        tokens: for each its tokens, special ones included; 0 of what was refused.
        cached: how many were answered without being executed for this request.
        tokenize, queue, execute: seconds of what was executed, at most one value for each road
            that its inputs took: the longest.
    """

    results: list[Any]
    tokens: list[int]
    cached: int
    tokenize: float
    queue: float
    execute: float


@dataclass(eq=False)
class _Run:
    """Inputs that were handed to the engine together.

    Attributes:
        submission: the engine's promise.
        done: the same, for the event loop.
        keys: what it answers.
        users: the requests that wait for it. When none does any more, it is cancelled.
    """

    submission: Submission
    done: asyncio.Future[Any]
    keys: list[Hashable]
    users: int = 0


@dataclass
class _Wanted:
    """Where a request's inputs are answered: each in a run and a place there, or already."""

    places: list[tuple[_Run, int] | None]
    results: list[Any]
    tokens: list[int]
    runs: list[_Run] = field(default_factory=list)


class Served:
    """An engine under a name, with what it answered already.

    Of one event loop: its methods are called there.
    """

    def __init__(self, name: str, engine: Engine, cache_bytes: int, metrics: Metrics) -> None:
        self.name = name
        self.engine = engine
        self.users = 0
        self._metrics = metrics
        self._cache = Cache(cache_bytes)
        self._flying: dict[Hashable, tuple[_Run, int]] = {}

    @property
    def cache_bytes(self) -> int:
        """The memory of the answers that are kept."""
        return self._cache.bytes

    def statistics(self) -> Statistics:
        """See `Engine.statistics`."""
        return self.engine.statistics()

    async def answer(
        self,
        inputs: Sequence[Any],
        *,
        prompt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Answered:
        """Answer inputs.

        Equal inputs are executed once, those of other requests included; each has the bits that
        `Engine.predict` gives for it alone. Cancelled, it takes back what has not run and nobody
        else waits for.

        Args:
            inputs: texts, pairs, lists of words or `Encoding`; of one request, and not none.
            prompt, priority, deadline: see `Engine.submit`.

        Raises:
            What `Engine.submit` raises and its future; what is wrong with an input is a `Refusal`
            in its place.
        """
        wanted = self._find(inputs, prompt, priority, deadline)
        try:
            for run in wanted.runs:
                await asyncio.wait_for(asyncio.shield(run.done), deadline)
        except (asyncio.TimeoutError, TimeoutError) as error:
            if isinstance(error, BertrtError):
                raise
            raise DeadlineExceeded(
                f"the deadline of {deadline:g} s was over before an equal input of another request "
                "was through"
            ) from None
        finally:
            for run in wanted.runs:
                self._leave(run)
        for i, place in enumerate(wanted.places):
            if place is not None:
                run, at = place
                result = run.done.result()[at]
                if isinstance(result, BertrtError):
                    result = refusal_of(result, i)
                else:
                    assert run.submission.report is not None
                    wanted.tokens[i] = run.submission.report.tokens[at]
                wanted.results[i] = result
        reports = [run.submission.report for run in wanted.runs]
        self._metrics.inputs.labels(self.name).inc(len(inputs))
        own = sum(len(run.keys) for run in wanted.runs)
        return Answered(
            wanted.results,
            wanted.tokens,
            max(0, len(inputs) - own),
            *(
                max((getattr(report, name) for report in reports), default=0.0)
                for name in ("tokenize", "queue", "execute")
            ),
        )

    def _find(
        self, inputs: Sequence[Any], prompt: str | None, priority: int, deadline: float | None
    ) -> _Wanted:
        count = len(inputs)
        wanted = _Wanted([None] * count, [None] * count, [0] * count)
        # Texts and pairs do not go into one batch of the engine's.
        new: dict[type, dict[Hashable, tuple[Any, list[int]]]] = {}
        for i, item in enumerate(inputs):
            key = _key(item, prompt)
            if (kept := self._cache.get(key)) is not None:
                wanted.results[i], wanted.tokens[i] = kept
            elif (found := self._flying.get(key)) is not None:
                self._join(wanted, i, *found)
            else:
                new.setdefault(type(item), {}).setdefault(key, (item, []))[1].append(i)
        self._metrics.cached.labels(self.name).inc(count - sum(map(len, new.values())))
        try:
            for own in new.values():
                run = self._submit(own, prompt, priority, deadline)
                for at, (_, places) in enumerate(own.values()):
                    for i in places:
                        self._join(wanted, i, run, at)
        except BaseException:
            for run in wanted.runs:
                self._leave(run)
            raise
        return wanted

    def _submit(
        self,
        own: dict[Hashable, tuple[Any, list[int]]],
        prompt: str | None,
        priority: int,
        deadline: float | None,
    ) -> _Run:
        submission = self.engine.submit(
            [item for item, _ in own.values()],
            prompt=prompt,
            on_error="return",
            priority=priority,
            deadline=deadline,
        )
        run = _Run(submission, asyncio.wrap_future(submission), list(own))
        run.done.add_done_callback(lambda done: self._end(run))
        # What may be dropped for its deadline, or is put behind others, is not shared.
        if deadline is None and priority >= 0:
            self._flying.update((key, (run, at)) for at, key in enumerate(run.keys))
        return run

    def _join(self, wanted: _Wanted, i: int, run: _Run, at: int) -> None:
        wanted.places[i] = (run, at)
        if run not in wanted.runs:
            wanted.runs.append(run)
            run.users += 1

    def _leave(self, run: _Run) -> None:
        run.users -= 1
        if run.users == 0 and not run.done.done():
            self._ground(run)
            run.submission.cancel()

    def _ground(self, run: _Run) -> None:
        for key in run.keys:
            if (found := self._flying.get(key)) is not None and found[0] is run:
                del self._flying[key]

    def _end(self, run: _Run) -> None:
        """Keep what a run gave. Its requests read their own from it."""
        self._ground(run)
        # Asked for, so that asyncio does not log an exception that nobody is left to see.
        if run.done.cancelled() or run.done.exception() is not None:
            return
        report = run.submission.report
        assert report is not None
        metrics, name = self._metrics, self.name
        metrics.tokens.labels(name).inc(sum(report.tokens))
        metrics.tokenize_seconds.labels(name).observe(report.tokenize)
        metrics.queue_seconds.labels(name).observe(report.queue)
        metrics.execute_seconds.labels(name).observe(report.execute)
        for key, result, tokens in zip(run.keys, run.done.result(), report.tokens, strict=True):
            if not isinstance(result, BertrtError):
                self._cache.put(key, (_alone(result), tokens))


def _key(item: Any, prompt: str | None) -> Hashable:
    """All of an input. The type keeps a pair and a list of two words apart."""
    if isinstance(item, Encoding):
        return Encoding, item.ids.tobytes(), item.types.tobytes(), prompt
    return type(item), tuple(item) if isinstance(item, list) else item, prompt


def _alone(result: Any) -> Any:
    """A result that does not keep its batch's memory."""
    if isinstance(result, Embedding) and result.vector.base is not None:
        return replace(result, vector=np.array(result.vector))
    return result
