"""A child forked from a process with a running engine has workers of its own."""

from __future__ import annotations

import os
import sys
import time

import pytest
import test_native_engine as handmade

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_forked_child_answers_with_all_its_threads(rng):
    """A child has the thread that forked and no other: with its parent's workers taken for its own,
    it would answer rightly, and alone."""
    engine = handmade.new_engine(*handmade.make_plan(rng), threads=3)
    batch = handmade.batch_of(rng, [64, 64, 64, 30])  # whole stretches of steps for a thread, too
    before = engine.run(*batch, handmade.OUTPUTS)
    child = os.fork()
    if child == 0:
        try:
            others = threads() - 1  # of MXNet, where it is loaded
            found = engine.run(*batch, handmade.OUTPUTS)
            same = all((found[name] == before[name]).all() for name in handmade.OUTPUTS)
            os._exit(threads() - others if same else 100)
        except BaseException as error:
            print(error, file=sys.stderr)
        os._exit(101)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3


@pytest.mark.parametrize("runs", [False, True])
def test_workers_end_with_their_engine_where_they_are(rng, runs):
    """In the process that has them. A child has none of its parent's to wait for."""
    others = threads()
    engine = handmade.new_engine(*handmade.make_plan(rng), threads=3)
    batch = handmade.batch_of(rng, [30, 20, 10])
    engine.run(*batch, handmade.OUTPUTS)
    assert threads() == others + 2
    child = os.fork()
    if child == 0:
        try:
            if runs:
                engine.run(*batch, handmade.OUTPUTS)
            del engine
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    del engine
    # A thread that has been joined may still be listed for a moment.
    for _ in range(6000):
        if threads() == others:
            break
        time.sleep(0.01)
    assert threads() == others
