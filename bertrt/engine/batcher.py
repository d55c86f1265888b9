"""The scheduler: what callers submit, tokenized and run by two threads in batches from all of them.

Each thread takes what is to be done: the next batch, if none runs, or fewer than the backend runs
at once; else texts to tokenize, if nobody does. So one tokenizes, or reads what a batch gave, while
the other runs the next one; and what a lone caller submits stays with the thread that took it.

Callers hold no lock here, as in `bertrt.engine.life`: they append to a deque and wake a thread,
each a step of the interpreter's own.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bertrt.backends.base import Backend
from bertrt.engine.batching import Batching, Statistics, Submission
from bertrt.engine.life import Stay
from bertrt.engine.line import Job, Line, Room
from bertrt.engine.predictor import Predictor, Sequenced, sequences_of
from bertrt.engine.workers import Workers
from bertrt.errors import BertrtError, DeadlineExceeded
from bertrt.text.encoding import Encoding
from bertrt.text.inputs import raise_errors

__all__ = ["Batcher", "ForkedError"]

# So many characters are tokenized at a time: some milliseconds, after which others have their turn.
_CHARACTERS_AT_ONCE = 1 << 16

# A job that has ended, and what its submission is to be told: its result or its error.
_Ended = tuple[Job, Any, BaseException | None]


class _Place(int):
    """An input's place in its batch, apart from the same place in others'."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Batcher:
    """An engine's scheduler. Its threads start with the first submission."""

    def __init__(self, predictor: Predictor, batching: Batching) -> None:
        self._predictor = predictor
        self._batching = batching
        self._renew()
        _batchers.add(self)

    def _renew(self) -> None:
        self._inbox: deque[Job] = deque()
        self._cancelled: deque[Job] = deque()
        self._jobs: set[Job] = set()
        self._workers = Workers(self)
        self._refusal: Callable[[], BertrtError] | None = None
        # For steps that have to be one. A ``with`` block of it is left unlocked by an interrupt,
        # as in `bertrt.engine.batching`, and a destructor within it may begin another one.
        self._entrance = threading.RLock()
        # What follows belongs to the threads, which hold the lock.
        self._lock = threading.Lock()
        self._texts, self._ready = Line(), Line()
        self._waiting = 0
        self._tokenizing, self._executing = False, 0
        self._batches = self._sequences = self._tokens = 0
        self._by_sequences: Counter[int] = Counter()
        self._by_tokens: Counter[int] = Counter()

    # --- what callers call ------------------------------------------------------------------------

    def start(self) -> bool:
        """Have threads; whether there is any."""
        return self._workers.start()

    @property
    def waiting(self) -> int:
        """The inputs that wait."""
        return self._waiting + sum(job.size for job in list(self._inbox))

    def statistics(self) -> Statistics:
        """See `Engine.statistics`."""
        return Statistics(
            self.waiting,
            self._batches,
            self._sequences,
            self._tokens,
            dict(self._by_sequences),
            dict(self._by_tokens),
        )

    def submit(
        self,
        items: Sequence[Any],
        single: bool,
        prompt: str,
        on_error: str,
        stay: Stay,
        *,
        priority: int = 0,
        deadline: float | None = None,
        bounded: bool = False,
    ) -> Submission:
        """Have inputs answered, of which each is one that `Predictor.inputs` gives.

        Raises QueueFull where they may not wait, if they are `bounded`.
        """

        def finish(job: Job) -> Any:
            requests = [job.requests[i] for i in range(job.size)]
            results = self._predictor.results(requests, job.parts)
            return results[0] if single else results

        now = time.monotonic()
        job = Job(
            Submission(), stay, finish, len(items), now=now, priority=priority, deadline=deadline
        )
        job.prompt = prompt
        job.all_or_none = on_error == "raise"
        for i, item in enumerate(items):
            (job.requests if isinstance(item, BertrtError) else job.items)[i] = item
        return self._put(job, bounded=bounded)

    def run(self, sequences: Sequence[Sequenced], stay: Stay) -> Submission:
        """Have sequences run: what is read of each."""
        now = time.monotonic()
        job = Job(Submission(), stay, lambda job: job.parts, len(sequences), now=now)
        job.run(list(sequences), pads=stay.backend.pads)
        return self._put(job)

    def _put(self, job: Job, *, bounded: bool = False) -> Submission:
        job.submission.cancels(lambda: self._drop(job))
        # In this order: what an interrupt leaves behind here will end.
        with self._entrance:
            if bounded:
                self._batching.check_room(self.waiting, job.size)
            self._inbox.append(job)
        job.stay.left = True
        self._jobs.add(job)
        if job.over:
            self._jobs.discard(job)
        self._workers.wake(self)
        return job.submission

    def _drop(self, job: Job) -> None:
        self._cancelled.append(job)
        self._workers.wake(self)

    def refuse(self, why: Callable[[], BertrtError]) -> None:
        """Fail what waits, and what comes; what runs ends."""
        self._refusal = why
        self.nudge()

    def nudge(self) -> None:
        """Look whether there is something to do: an interrupt may have kept a caller from it."""
        if self._workers.count:  # or nobody would take it, and it refers to this
            self._workers.wake(self)

    # --- what the threads do ----------------------------------------------------------------------

    def serve(self, number: int) -> None:
        """Do what there is to do; the caller is thread `number`."""
        try:
            self._serve(number)
        except BaseException as error:
            self._give_up(error)

    def _serve(self, number: int) -> None:
        # Of what comes after this look, the call that wakes comes, too.
        while self._inbox or self._cancelled or self._texts or self._ready:
            batch: list[tuple[Job, list[int]]] = []
            texts: list[tuple[Job, dict[int, Any]]] = []
            with self._lock:
                now = time.monotonic()
                self._workers.looks(number)
                gone = self._take_in(now)
                if self._may_execute():
                    pads = self._ready.first.stay.backend.pads
                    for job, own in self._ready.batch(now, Room(self._predictor.tokens, pads=pads)):
                        if self._begin(job):
                            batch.append((job, own))
                        else:
                            gone.append((job, None))
                    self._executing += bool(batch)
                if not batch and self._texts and not self._tokenizing:
                    texts = self._texts.texts(now, _CHARACTERS_AT_ONCE)
                    self._tokenizing = True
                others = self._has_work()
            for job, error in gone:
                self._end(job, error=error)
            if not batch and not texts:
                if gone:
                    continue
                return
            if others:
                self._workers.wake_other(self, number)
            if batch:
                self._execute(batch, number)
            else:
                self._tokenize(texts)

    def _has_work(self) -> bool:
        return self._may_execute() or (bool(self._texts) and not self._tokenizing)

    def _may_execute(self) -> bool:
        return self._executing < (self._ready.first.stay.backend.at_once if self._ready else 0)

    def _take_in(self, now: float) -> list[tuple[Job, BaseException | None]]:
        """Put what has come in line, and take out what nobody waits for, with what becomes of
        it."""
        gone: list[tuple[Job, BaseException | None]] = []
        with self._entrance:
            while self._inbox:
                job = self._inbox.popleft()
                (self._texts if job.items or not job.sequences else self._ready).add(job)
                self._waiting += job.size
        while self._cancelled:
            job = self._cancelled.popleft()
            if self._texts.remove(job) or self._ready.remove(job):
                gone.append((job, None))
        for line in (self._texts, self._ready):
            if not line:
                continue
            for job in line.expired(now):
                late = now - job.came
                gone.append(
                    (
                        job,
                        DeadlineExceeded(
                            f"it had not begun to run {late:.3f} seconds after it was submitted; "
                            f"its deadline was {(job.deadline or now) - job.came:.3f}"
                        ),
                    )
                )
            if self._refusal is not None:
                for job in line:
                    line.remove(job)
                    gone.append((job, self._refusal()))
        return gone

    def _begin(self, job: Job) -> bool:
        """Note that a batch has a part of a job; whether anybody waits for it."""
        # A program that gives it a result of its own waits for none.
        if job.over or job.submission.done():
            return False
        if job.left:
            return True
        self._leave(job)
        # The last part: from here on it cannot be cancelled.
        return job.submission.begin()

    def _leave(self, job: Job) -> None:
        if job.waits:
            job.waits = False
            self._waiting -= job.size

    def _end(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """A job's end: its result or its error, or neither where it was cancelled."""
        if self._close(job):
            self._tell(job, result, error)

    def _close(self, job: Job) -> bool:
        """Note that a job ends, of which its submission is still to be told; whether it had not
        ended before."""
        with self._lock:
            if job.over:
                return False
            job.over = True
            self._leave(job)
            self._ready.remove(job)
        job.stay.__exit__(None, None, None)
        return True

    def _tell(self, job: Job, result: Any, error: BaseException | None) -> None:
        self._jobs.discard(job)
        job.tell(result, error)

    def _tokenize(self, texts: list[tuple[Job, dict[int, Any]]]) -> None:
        groups: dict[Any, dict[int, tuple[Job, Any]]] = {}
        for job, items in texts:
            for i, item in items.items():
                kind = job.prompt, type(item) if isinstance(item, tuple | Encoding) else str
                groups.setdefault(kind, {})[_Place(i)] = job, item
        begun = time.monotonic()
        errors: dict[Job, BaseException] = {}
        for (prompt, _), places in groups.items():
            self._make_requests(prompt, places, errors)
        ended = time.monotonic()
        ready: list[Job] = []
        for job, _ in texts:
            job.tokenize += ended - begun
            if not job.items or job in errors:
                try:
                    if job in errors:
                        raise errors[job]
                    self._is_whole(job)
                    if job.sequences:
                        ready.append(job)
                    else:
                        self._end(job, job.finish(job))
                except BaseException as error:
                    self._end(job, error=error)
        with self._lock:
            self._tokenizing = False
            for job in ready:
                if not job.over:
                    job.stand(job.came)
                    self._ready.add(job)

    def _make_requests(
        self,
        prompt: str,
        places: Mapping[int, tuple[Job, Any]],
        errors: dict[Job, BaseException],
    ) -> None:
        """Tokenize inputs of one kind; an error is that of the jobs that it comes from."""
        try:
            made = self._predictor.requests(
                {place: item for place, (_, item) in places.items()}, prompt
            )
        except BaseException as error:
            jobs = {job: None for job, _ in places.values()}
            if len(jobs) == 1:
                errors[next(iter(jobs))] = error
                return
            for one in jobs:
                own = {place: (job, item) for place, (job, item) in places.items() if job is one}
                self._make_requests(prompt, own, errors)
            return
        for place, (job, _) in places.items():
            job.requests[int(place)] = made[place]

    def _is_whole(self, job: Job) -> None:
        """All of a job's inputs are tokenized: what is to run is known."""
        requests = [job.requests[i] for i in range(job.size)]
        if job.all_or_none:
            raise_errors(requests)
        pads = job.stay.lease is not None and job.stay.backend.pads
        job.run(sequences_of(requests), pads=pads)

    def _execute(self, batch: list[tuple[Job, list[int]]], number: int) -> None:
        sequences = [job.sequences[i] for job, own in batch for i in own]
        # What is needed of a job that ends meanwhile, such as by an error of another part.
        leases = [job.stay.lease for job, _ in batch]
        begun = time.monotonic()
        error: BaseException | None = None
        found: Sequence[Any] = ()
        values: Any = None
        packed: Any = None
        lease = next((one for one in leases if one is not None), None)
        try:
            if lease is not None:
                values, packed = self._predictor.run(lease.backend, sequences)
        except BaseException as caught:
            error = caught
        took = time.monotonic() - begun
        tokens = sum(len(encoding.ids) for _, encoding in sequences)
        with self._lock:
            self._executing = max(0, self._executing - 1)
            for job, _ in batch:
                job.execute += took
            self._count(len(sequences), tokens)
            others = self._has_work() or bool(self._inbox)
        if others:
            self._workers.wake_other(self, number)
        try:
            if lease is not None and error is None:
                found = self._predictor.read(values, packed, sequences)
        except BaseException as caught:
            error = caught
        del values
        if error is not None and len(batch) > 1 and lease is not None:
            ended = self._apart(batch, lease.backend)
        else:
            parts = iter(found)
            ended = [
                self._parts(job, own, [next(parts, None) for _ in own], error) for job, own in batch
            ]
        del lease, leases, error
        # Last of all: who is told wants the interpreter's lock, which this thread gives up then.
        for job, result, error in filter(None, ended):
            self._tell(job, result, error)

    def _apart(self, batch: list[tuple[Job, list[int]]], backend: Backend) -> list[_Ended | None]:
        """Run each job's part of a batch alone: an error of one is not the others'."""
        ended: list[_Ended | None] = []
        for job, own in batch:
            try:
                found = self._predictor.run_and_read(backend, [job.sequences[i] for i in own])
            except BaseException as error:
                ended.append(self._parts(job, own, (), error))
            else:
                ended.append(self._parts(job, own, found, None))
        return ended

    def _parts(
        self, job: Job, own: list[int], found: Sequence[Any], error: BaseException | None
    ) -> _Ended | None:
        """What a job has of a batch; what it is to be told, where that is its end."""
        result = None
        if error is None:
            for i, part in zip(own, found, strict=True):
                job.parts[i] = part
            with self._lock:
                job.missing -= len(own)
                missing = job.missing
            if missing and not job.submission.cancelled():
                return None
            try:
                result = None if missing else job.finish(job)
            except BaseException as caught:
                error = caught
        return (job, result, error) if self._close(job) else None

    def _count(self, sequences: int, tokens: int) -> None:
        self._batches += 1
        self._sequences += sequences
        self._tokens += tokens
        self._by_sequences[1 << (sequences - 1).bit_length()] += 1
        self._by_tokens[1 << (tokens - 1).bit_length()] += 1

    def _give_up(self, error: BaseException) -> None:
        """Where the scheduler itself fails, as for want of memory, all that it has ends with the
        error, and it goes on with what comes."""
        with self._lock:
            while self._inbox:
                self._waiting += self._inbox.popleft().size
            self._texts, self._ready = Line(), Line()
            self._tokenizing, self._executing = False, 0
        for job in list(self._jobs):
            self._close(job)
            self._tell(job, None, error)

    def after_fork(self) -> None:
        """In a forked child, where no thread of the parent lives on: what it had waiting fails."""
        jobs = list(self._jobs)
        self._renew()
        for job in jobs:
            job.waits = False  # not here
            job.submission.renew()
            self._close(job)
            error = ForkedError("it was submitted before a fork, and is the parent's")
            self._tell(job, None, error)


class ForkedError(BertrtError):
    """What the parent has submitted is not answered in a forked child."""


# Those of this process, for the fork hook.
_batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()


def _after_fork() -> None:
    for batcher in list(_batchers):
        batcher.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
