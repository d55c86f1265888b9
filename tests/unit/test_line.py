"""The rules of the scheduler, by a clock of our own: who stands where, and what a batch takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertrt.engine.batching import Submission
from bertrt.engine.life import Stay
from bertrt.engine.line import PRIORITIES, STEP, Job, Line, Room
from bertrt.tasks.base import Request
from bertrt.text.encoding import Encoding


def job(*lengths: int, now: float = 0.0, pads: bool = False, masks: int = 0, **turn: Any) -> Job:
    made = Job(Submission(), Stay("submit"), lambda job: job.parts, len(lengths), now=now, **turn)
    positions = np.zeros(masks, np.int32) if masks else None
    encodings = [Encoding(np.zeros(n, np.int32), np.zeros(n, np.int32)) for n in lengths]
    sequences = [(Request([one], False, positions), one) for one in encodings]
    made.run(sequences, pads=pads)
    return made


def in_line(*jobs: Job) -> Line:
    line = Line()
    for one in jobs:
        line.add(one)
    return line


def taken(line: Line, now: float = 0.0, tokens: int = 10, *, pads: bool = False) -> Any:
    """Of the next batch the jobs, each with the lengths of its sequences in it."""
    batch = line.batch(now, Room(tokens, pads=pads))
    return [(one, [len(one.sequences[i][1].ids) for i in own]) for one, own in batch]


def test_nobody_waits_for_ever() -> None:
    """Of ever new jobs of the highest priority those that come late enough stand behind one of the
    lowest."""
    low = job(10, priority=PRIORITIES[0])
    line = in_line(low)
    wait = STEP * (PRIORITIES[-1] - PRIORITIES[0])
    now, first = 0.0, None
    while first is not low:
        assert now <= wait + 1
        line.add(job(10, now=now, priority=PRIORITIES[-1]))
        ((first, _),) = taken(line, now)
        now += 1.0
    assert now > wait


def test_equal_ones_go_as_they_came() -> None:
    jobs = [job(10) for _ in range(5)]
    line = in_line(*jobs)
    assert [taken(line)[0][0] for _ in jobs] == jobs
    assert not line


def test_what_does_not_fit_is_passed_once_and_not_for_ever() -> None:
    small, large = [job(4, now=float(i)) for i in range(50)], job(8, now=0.5)
    line = in_line(*small, large)
    assert [one for one, _ in taken(line)] == [small[0], small[1]]
    assert [one for one, _ in taken(line)] == [large]


def test_the_rest_of_a_large_one_stands_as_if_it_came_now() -> None:
    large, early, late = job(*[5] * 6), job(5, now=1.0), job(5, now=3.0)
    line = in_line(large, early, late)
    assert taken(line, 2.0) == [(large, [5, 5])]
    assert taken(line, 3.5) == [(early, [5]), (large, [5])]
    assert taken(line, 3.6) == [(late, [5]), (large, [5])]
    assert taken(line, 4.0) == [(large, [5, 5])]
    assert not line


def test_where_the_backend_pads_padding_counts() -> None:
    line = in_line(*(job(n, pads=True) for n in (2, 5, 2, 2)))
    assert [own for _, own in taken(line, pads=True)] == [[2], [5]]
    # More than half of it padding is worse than two batches.
    line = in_line(*(job(n, pads=True) for n in (1, 20, 1, 1, 20)))
    assert [own for _, own in taken(line, tokens=100, pads=True)] == [[1], [20], [20]]
    assert [own for _, own in taken(line, tokens=100, pads=True)] == [[1], [1]]
    line = in_line(job(7, 1, 6, 2, 1, pads=True))
    assert [own for _, own in taken(line, tokens=12, pads=True)] == [[1, 1, 2]]


def test_like_numbers_of_masks_go_together() -> None:
    line = in_line(job(1, masks=1), job(1, masks=2), job(1, masks=1))
    assert [len(taken(line)) for _ in range(2)] == [2, 1]


def test_deadlines() -> None:
    soon, later, never = job(9, deadline=1), job(9, deadline=5), job(9)
    line = in_line(soon, later, never)
    assert list(line.expired(0.9)) == []
    assert list(line.expired(1.0)) == [soon]
    assert taken(line, 1.0) == [(later, [9])]  # it has begun
    assert list(line.expired(9.0)) == [] and list(line) == [never]


@pytest.mark.parametrize("count", [1, 1000])
def test_deadlines_of_what_has_gone_are_forgotten(count: int) -> None:
    line = Line()
    for i in range(count):
        line.add(job(10, now=float(i), deadline=3600))
        taken(line, float(i))
    assert len(line._deadlines) < 100


def test_a_job_is_taken_out_from_anywhere() -> None:
    jobs = [job(1, now=float(i % 3)) for i in range(9)]
    line = in_line(*jobs)
    assert line.remove(jobs[4]) and not line.remove(jobs[4])
    assert sorted(map(id, line)) == sorted(id(one) for one in jobs if one is not jobs[4])


def test_texts_are_taken_in_turns() -> None:
    large, small = job(), job(now=1.0)
    large.items = dict(enumerate(["a" * 30] * 3))
    small.items = {0: ("a", "b"), 1: ["c"]}
    line = in_line(large, small)
    assert line.texts(2.0, 40) == [(large, {0: "a" * 30, 1: "a" * 30})]
    assert line.texts(2.0, 40) == [(small, {0: ("a", "b"), 1: ["c"]}), (large, {2: "a" * 30})]
    assert not line
