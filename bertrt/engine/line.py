"""Who waits, and who comes next: the rules of the scheduler, without its threads.

Each job stands in line at a time: that at which it came, less a second for each step of its
priority. So a higher priority goes first, and yet nobody waits for ever: whoever comes later by as
many seconds as the steps between them stands behind. A batch begins with the first in line and
takes on from there what fits. Of a job that does not fit as a whole, what is left stands in line
again as if it had just come.
"""

from __future__ import annotations

import bisect
import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

from bertrt.engine.batching import Report, Submission
from bertrt.engine.life import Stay
from bertrt.engine.memory import named
from bertrt.engine.predictor import Sequenced, masks_of

__all__ = ["PRIORITIES", "Job", "Line", "Room"]

# The seconds by which a step of priority stands before its time, and the steps that there are.
STEP = 1.0
PRIORITIES = range(-10, 11)

# A batch is full where so many sequences in a row do not fit.
_MISSES = 64


class Job:
    """What somebody has asked for, on its way.

    Attributes:
        submission: the future of it.
        stay: its stay inside the engine, which holds the backend.
        finish: makes the result, of what was read of each sequence.
        size: how many inputs it has.
        items: the inputs to be tokenized, by their places.
        prompt: what goes before each of them.
        all_or_none: whether nothing runs where one of them has an error.
        requests: what has become of the inputs, by their places.
        sequences: what is to run.
        left: those of them that are in no batch yet, the next one last.
        parts: what was read of each.
        missing: of how many nothing was read yet.
        began: when the first of them came into a batch.
        tokenize, execute: see `Report`.
        waits: whether it counts among those that wait.
        over: whether it has ended.
    """

    def __init__(
        self,
        submission: Submission,
        stay: Stay,
        finish: Callable[[Job], Any],
        size: int,
        *,
        now: float,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.submission = submission
        self.stay = stay
        self.finish = finish
        self.size = size
        self.priority = priority
        self.deadline = None if deadline is None else now + deadline
        self.came = now
        self.items: dict[int, Any] = {}
        self.prompt = ""
        self.all_or_none = False
        self.requests: dict[int, Any] = {}
        self.sequences: list[Sequenced] = []
        self.left: list[int] = []
        self.parts: list[Any] = []
        self.missing = 0
        self.began: float | None = None
        self.tokenize = 0.0
        self.execute = 0.0
        self.waits = True
        self.over = False
        self.stand(now)

    def stand(self, now: float) -> None:
        """Stand in line as one who comes now."""
        self.place = now - STEP * self.priority

    def run(self, sequences: list[Sequenced], *, pads: bool) -> None:
        """Say what is to run; where the backend pads, those of like length go together."""
        self.sequences = sequences
        self.left = list(range(len(sequences)))[::-1]
        if pads:
            self.left.sort(key=lambda i: -len(sequences[i][1].ids))
        self.parts = [None] * len(sequences)
        self.missing = len(sequences)

    def report(self, done: float) -> Report:
        """What it took, at its end."""
        tokens = [0] * self.size
        if self.requests:
            for i, own in self.requests.items():
                sequences = getattr(own, "sequences", ())
                tokens[i] = sum(len(encoding.ids) for encoding in sequences)
        else:
            tokens = [len(encoding.ids) for _, encoding in self.sequences]
        began = done if self.began is None else self.began
        queue = max(0.0, began - self.came - self.tokenize)
        return Report(tuple(tokens), self.tokenize, queue, self.execute)

    def tell(self, result: Any, error: BaseException | None) -> None:
        """Tell its submission how it ended: by its result or its error, or, where it was cancelled,
        by neither."""
        submission = self.submission
        submission.cancels(None)
        if error is not None:
            error = named(error, self.stay.method)
        told = error is None and not submission.unwanted
        submission.end(result, error, self.report(time.monotonic()) if told else None)


class Room:
    """What a batch has taken, and whether one more sequence fits."""

    def __init__(self, tokens: int, *, pads: bool) -> None:
        self._most = tokens
        self._pads = pads
        self.tokens = self.sequences = self._longest = 0
        self._masks = -1

    def fits(self, sequence: Sequenced) -> bool:
        """Whether it does; it has taken it then. The first one always does."""
        request, encoding = sequence
        length, masks = len(encoding.ids), masks_of(request)
        longest = max(self._longest, length)
        tokens, sequences = self.tokens + length, self.sequences + 1
        if self.sequences:
            size = longest * sequences if self._pads else tokens
            # A batch of which more than half would be padding takes longer than two.
            sparse = self._pads and size > 2 * tokens
            if masks != self._masks or size > self._most or sparse:
                return False
        self.tokens, self.sequences, self._longest, self._masks = tokens, sequences, longest, masks
        return True


class Line:
    """Jobs in line."""

    def __init__(self) -> None:
        self._jobs: list[tuple[float, int, Job]] = []
        self._deadlines: list[tuple[float, int, Job]] = []
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter([job for _, _, job in self._jobs])

    @property
    def first(self) -> Job:
        """The first of them."""
        return self._jobs[0][2]

    def add(self, job: Job) -> None:
        """Put a job where it stands; of equal ones the one that came first is first."""
        self._number += 1
        bisect.insort(self._jobs, (job.place, self._number, job))
        if job.deadline is not None and job.began is None:
            heapq.heappush(self._deadlines, (job.deadline, self._number, job))
            if len(self._deadlines) > 2 * len(self._jobs) + _MISSES:
                # Most are of jobs that have gone.
                here = set(map(id, self))
                self._deadlines = [entry for entry in self._deadlines if id(entry[2]) in here]
                heapq.heapify(self._deadlines)

    def remove(self, job: Job) -> bool:
        """Take a job out; whether it was in line."""
        at = bisect.bisect_left(self._jobs, (job.place, 0))
        while at < len(self._jobs) and self._jobs[at][0] == job.place:
            if self._jobs[at][2] is job:
                del self._jobs[at]
                return True
            at += 1
        return False

    def expired(self, now: float) -> Iterator[Job]:
        """Take out those whose time to begin is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, job = heapq.heappop(self._deadlines)
            if job.began is None and self.remove(job):
                yield job

    def batch(self, now: float, room: Room) -> list[tuple[Job, list[int]]]:
        """The next batch: jobs in line, each with the sequences that it has in it."""
        batch: list[tuple[Job, list[int]]] = []
        misses = 0
        for job in self:
            taken: list[int] = []
            passed: list[int] = []
            while job.left and misses < _MISSES:
                if room.fits(job.sequences[job.left[-1]]):
                    taken.append(job.left.pop())
                    misses = 0
                else:
                    passed.append(job.left.pop())
                    misses += 1
            job.left += reversed(passed)
            if taken:
                batch.append((job, taken))
                self.remove(job)
                if job.began is None:
                    job.began = now
                if job.left:
                    job.stand(now)
                    self.add(job)
            if misses >= _MISSES:
                break
        return batch

    def texts(self, now: float, most: int) -> list[tuple[Job, dict[int, Any]]]:
        """What is tokenized next: up to so many characters, and at least one input."""
        taken: list[tuple[Job, dict[int, Any]]] = []
        for job in self:
            own: dict[int, Any] = {}
            while job.items and most > 0:
                place = next(iter(job.items))
                own[place] = job.items.pop(place)
                most -= 1 + _characters(own[place])
            taken.append((job, own))
            self.remove(job)
            if job.items:
                job.stand(now)
                self.add(job)
            if most <= 0:
                break
        return taken


def _characters(item: Any) -> int:
    if isinstance(item, str):
        return len(item)
    return sum(map(len, item)) if isinstance(item, tuple | list) else 64
