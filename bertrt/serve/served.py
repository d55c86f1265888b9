"""A model at work under a name: inputs to answers, by its engine or from what is kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bertrt.engine import Encoding, Engine, Report, Statistics, Submission
from bertrt.errors import BertrtError, DeadlineExceeded
from bertrt.results import Embedding
from bertrt.serve.aside import Turns
from bertrt.serve.backlog import Backlog, Place
from bertrt.serve.cache import Cache
from bertrt.serve.metrics import Metrics
from bertrt.serve.refusals import Refusal, refusal_of

__all__ = ["Answered", "Served"]

# So many requests for all vectors of their texts wait, and so many vectors one of them gets: BERT
# large's take 64 MiB.
_ASIDE, _ROWS = 32, 16384
# Of these so many are executed at once; between them it is seen whether anybody waits for them.
_ROWS_AT_ONCE = 4096
# What statistics are made of
_COUNTS = ("waiting", "batches", "sequences", "tokens")
_TABLES = ("by_sequences", "by_tokens")


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

    def whole(self) -> list[Any]:
        """The results; raises the refusal of the first input that has one."""
        for result in self.results:
            if isinstance(result, BertrtError):
                raise result
        return self.results


@dataclass(eq=False)
class _Run:
    """Inputs that were handed to the engine together.

    Attributes:
        submission: the engine's promise.
        done: the same, for the event loop.
        keys: what it answers.
        place: where it stands in line.
        priority: with which it was handed over.
        has_deadline: whether it was handed over with one; then it is of one request alone.
        users: the requests that wait for it. When none does any more, it is cancelled.
    """

    submission: Submission
    done: asyncio.Future[Any]
    keys: list[Hashable]
    place: Place
    priority: int = 0
    has_deadline: bool = False
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

    Attributes:
        name: its name.
        engine: the engine.
        settings: those of the engine.
        users: the requests that have it, which keep it from being closed.
        loaded: when that was, in seconds since 1970.
    """

    def __init__(
        self, name: str, engine: Engine, cache_bytes: int, metrics: Metrics, backlog: Backlog
    ) -> None:
        self.name = name
        self.engine = engine
        self.settings: Mapping[str, Any] = engine.settings
        self.users = 0
        self.loaded = int(time.time())
        self._metrics, self._backlog = metrics, backlog
        self._cache = Cache(cache_bytes)
        self._flying: dict[Hashable, tuple[_Run, int]] = {}
        # Runs that are over, and whether the event loop has been told.
        self._ended: deque[_Run] = deque()
        self._telling = False
        self._variant: Hashable = None
        self._others: dict[Hashable, Served] = {}
        self._aside = Turns(1, _ASIDE, "requests for all vectors of a text")

    def with_settings(self, settings: Mapping[str, Any]) -> Served:
        """The same model with other settings of its task, `Engine.with_settings`; what is kept of
        its answers is kept apart."""
        now = self.settings
        settings = {name: value for name, value in settings.items() if now.get(name) != value}
        if not settings:
            return self
        key = tuple(sorted(settings.items()))
        if key not in self._others:
            made = Served(
                self.name, self.engine.with_settings(settings), 0, self._metrics, self._backlog
            )
            made._cache, made._variant = self._cache, key
            self._others[key] = made
        return self._others[key]

    @property
    def full(self) -> bool:
        """Whether a request would wait too long."""
        return self._backlog.full

    @property
    def cache_bytes(self) -> int:
        """The memory of the answers that are kept."""
        return self._cache.bytes

    def statistics(self) -> Statistics:
        """See `Engine.statistics`; with those of other settings."""
        found = [own.engine.statistics() for own in (self, *self._others.values())]
        return Statistics(
            *(sum(getattr(one, name) for one in found) for name in _COUNTS),
            *(sum((Counter(getattr(one, name)) for one in found), Counter()) for name in _TABLES),
        )

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
            begun = time.monotonic()
            for run in wanted.runs:
                # The engine itself sees to the deadline of what it was given with one.
                if deadline is None or run.has_deadline:
                    await asyncio.shield(run.done)
                else:
                    late = max(0.0, begun + deadline - time.monotonic())
                    await asyncio.wait_for(asyncio.shield(run.done), late)
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
        self._metrics.asked(self.name, len(inputs))
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

    async def token_vectors(
        self, texts: Sequence[str], *, prompt: str | None, reason: str | None
    ) -> Answered:
        """The last layer's rows of texts, special tokens included: `Engine.run` of what
        `Engine.tokenize` gives. One request at a time, and beside the engine's queue.

        Args:
            texts: of one request.
            prompt: see `Engine.predict`.
            reason: why a text that is too long is refused; None: it is cut.

        Raises:
            Refusal: 413 they have too many tokens; 422 a text is too long; 424 the model does not
                give these rows. And what `Engine.tokenize` and `Engine.run` raise.
        """
        asked = time.monotonic()
        engine = self.engine

        def work(wanted: Callable[[], bool]) -> tuple[list[np.ndarray], Report]:
            begun = time.monotonic()
            encodings = engine.tokenize(list(texts), prompt=prompt)
            tokens = tuple(len(own.ids) for own in encodings)
            for i, own in enumerate(encodings):
                if reason and own.truncated:
                    raise Refusal(422, f"input[{i}] {reason}")
            if sum(tokens) > _ROWS:
                raise Refusal(
                    413,
                    f"the inputs have {sum(tokens)} tokens; of at most {_ROWS} at once all "
                    "vectors are given",
                )
            rows: list[np.ndarray] = []
            tokenized = time.monotonic()
            while len(rows) < len(texts) and wanted():
                some: list[Encoding] = []
                room = _ROWS_AT_ONCE
                for own in encodings[len(rows) :]:
                    room -= len(own.ids)
                    if some and room < 0:
                        break
                    some.append(own)
                found = engine.run([own.ids for own in some], [own.types for own in some])
                if "sequence_output" not in found:
                    raise Refusal(
                        424,
                        f"the model {self.name!r} gives no vectors of tokens; it gives "
                        f"{list(found)}",
                    )
                rows += found["sequence_output"]
            times = tokenized - begun, begun - asked, time.monotonic() - tokenized
            return rows, Report(tokens, *times)

        rows, report = await self._aside.do(work)
        self._metrics.asked(self.name, len(texts))
        return self.executed_aside(report, rows)

    def executed_aside(self, report: Report, results: Sequence[Any] = ()) -> Answered:
        """Count what was executed beside the engine's queue, and say what became of it."""
        self._metrics.executed(self.name, report)
        times = report.tokenize, report.queue, report.execute
        return Answered(list(results), list(report.tokens), 0, *times)

    def _find(
        self, inputs: Sequence[Any], prompt: str | None, priority: int, deadline: float | None
    ) -> _Wanted:
        count = len(inputs)
        wanted = _Wanted([None] * count, [None] * count, [0] * count)
        # Texts and pairs do not go into one batch of the engine's.
        new: dict[type, dict[Hashable, tuple[Any, list[int]]]] = {}
        for i, item in enumerate(inputs):
            key = self._variant, _key(item, prompt)
            if (kept := self._cache.get(key)) is not None:
                wanted.results[i], wanted.tokens[i] = kept
            elif (found := self._flying.get(key)) is not None and (
                # One that waits behind where this one would stand is overtaken.
                found[0].priority >= priority or found[0].submission.running()
            ):
                self._join(wanted, i, *found)
            else:
                new.setdefault(type(item), {}).setdefault(key, (item, []))[1].append(i)
        self._metrics.kept(self.name, count - sum(map(len, new.values())))
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
        if priority <= 0:
            self._backlog.check()
        submission = self.engine.submit(
            [item for item, _ in own.values()],
            prompt=prompt,
            on_error="return",
            priority=priority,
            deadline=deadline,
        )
        loop = asyncio.get_running_loop()
        place = self._backlog.enter((item for item, _ in own.values()), self.engine.max_length)
        run = _Run(
            submission, loop.create_future(), list(own), place, priority, deadline is not None
        )

        # A submission keeps its callbacks: one that kept the run, which has the submission, would
        # leave both, this model and its engine to the garbage collector.
        untold = [run]

        def told(_: Future[Any]) -> None:
            self._ended.append(untold.pop())
            if not self._telling:
                self._telling = True
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._take_in)

        # It only wakes the loop, once for all runs of a batch, and so needs none of the threads in
        # which a submission's callbacks may take their time.
        Future.add_done_callback(submission, told)
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

    def _take_in(self) -> None:
        self._telling = False
        while self._ended:
            self._end(self._ended.popleft())

    def _end(self, run: _Run) -> None:
        """Keep what a run gave. Its requests read their own from it."""
        self._ground(run)
        submission, done = run.submission, run.done
        if submission.cancelled():
            self._backlog.leave(run.place, ran=False)
            done.cancel()
            return
        error = submission.exception()
        self._backlog.leave(run.place, ran=error is None)
        if error is not None:
            done.set_exception(error)
            # Asked for, so that asyncio does not log it where nobody is left to see it.
            done.exception()
            return
        done.set_result(submission.result())
        report = submission.report
        assert report is not None
        self._metrics.executed(self.name, report)
        for key, result, tokens in zip(run.keys, done.result(), report.tokens, strict=True):
            if not isinstance(result, BertrtError):
                self._cache.put(key, (_alone(result), tokens))


def _key(item: Any, prompt: str | None) -> Hashable:
    """All of an input. The type keeps a pair and a list of two words apart."""
    if isinstance(item, Encoding):
        # The bytes of int64 are those of other int32.
        parts = [(array.dtype.str, array.tobytes()) for array in (item.ids, item.types)]
        return Encoding, *parts, item.truncated, item.prompt, prompt
    return type(item), tuple(item) if isinstance(item, list) else item, prompt


def _alone(result: Any) -> Any:
    """A result that does not keep its batch's memory."""
    if isinstance(result, Embedding) and result.vector.base is not None:
        return replace(result, vector=np.array(result.vector))
    return result
