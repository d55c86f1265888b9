"""What callers and the system do wrong, which must not stop the scheduler of the others."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from concurrent.futures import TimeoutError as FuturesTimeoutError
from concurrent.futures import as_completed, wait
from contextlib import suppress
from typing import Any

import pytest

import bertrt.engine.batching as batching
from bertrt import Batching, BertrtError, BusyError, QueueFull
from bertrt.engine.batcher import Batcher
from bertrt.engine.line import Line

LONG = 60


class Held:
    """An engine of the tiny model whose first run waits until it is let go."""

    def __init__(self, tiny: Any, **settings: Any) -> None:
        self.engine = tiny.load(**settings)
        begun, self.go_on = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert self.go_on.wait(LONG)

        tiny.backends[-1].before_run = wait
        self.first = self.engine.submit("!")
        assert begun.wait(LONG)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupt_leaves_no_lock(waits: bool) -> None:
    """A submission's lock would stop the thread that has its result."""
    condition = batching.Submission()._condition
    armed = False

    class LeftError(Exception):
        pass

    def leave(*_: Any) -> None:
        if armed:
            raise LeftError

    before = signal.signal(signal.SIGALRM, leave)
    try:
        for _ in range(500):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                while True:
                    with condition:
                        if waits:
                            condition.wait(0)
            except LeftError:
                armed = False
            assert not condition._is_owned()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(condition._waiters) <= 500


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
@pytest.mark.parametrize("completed", [False, True])
def test_interrupts_in_the_librarys_own_wait(tiny, completed: bool) -> None:
    """They leave locks behind, of submissions and of what tells the waiting; nobody else waits, and
    whoever was interrupted may wait again."""
    held = Held(tiny)
    futures = [held.engine.submit("a") for _ in range(20)]
    armed = False

    class LeftError(Exception):
        pass

    def leave(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise LeftError

    def look() -> None:
        if completed:
            with suppress(TimeoutError, FuturesTimeoutError):
                list(as_completed(futures, 0))
        else:
            wait(futures, 0)

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for _ in range(300):
            with suppress(LeftError):
                while True:
                    # Again each time: one that comes where a generator is closed is ignored.
                    armed = True
                    look()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    held.go_on.set()
    assert held.engine.submit("a").result(LONG).vector[1] == 3
    assert not wait(futures, LONG).not_done
    assert all(future.result().vector[1] == 3 for future in futures)
    held.engine.close(LONG)


def test_a_lock_that_is_left_behind_is_nobody_elses(tiny) -> None:
    """Others are answered meanwhile, and it is told when the lock is free."""
    held = Held(tiny)
    told = [held.engine.submit("a"), held.engine.submit("a"), held.engine.submit("a")]
    dropped = held.engine.submit("a", deadline=0)
    for one in (*told, dropped):
        one._condition.acquire()
    assert told[1].cancel()
    held.go_on.set()
    assert held.first.result(LONG).vector[1] == 3
    for _ in range(3):
        assert held.engine.submit("a").result(LONG).vector[1] == 3
    assert not told[0].done() and told[0].running() and not dropped.done()
    # Nobody is left to be told of it.
    del told[2]
    for one in (*told, dropped):
        one._condition.release()
    assert wait([*told, dropped], LONG).done == {*told, dropped}
    assert told[0].result().vector[1] == 3 and told[1].cancelled()
    assert isinstance(dropped.exception(), TimeoutError)


def test_a_cancellation_that_is_interrupted(tiny) -> None:
    """Between its two steps: it is cancelled all the same."""
    held = Held(tiny)
    one = held.engine.submit("a")
    one._fate["it"] = "cancelled"
    held.go_on.set()
    assert held.engine.submit("a").result(LONG).vector[1] == 3
    assert wait([one], LONG).done and one.cancelled()


def test_room_is_found_and_taken_in_one_step(tiny, monkeypatch) -> None:
    tiny.batching = Batching(queue=3)
    held = Held(tiny)
    check = Batching.check_room

    def slow(*arguments: Any) -> None:
        check(*arguments)
        time.sleep(0.01)

    monkeypatch.setattr(Batching, "check_room", slow)
    found: list[Any] = []

    def submit() -> None:
        with suppress(QueueFull):
            found.append(held.engine.submit("a"))

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert held.engine.statistics().waiting == 3
    held.go_on.set()
    assert not wait(found, LONG).not_done


def test_an_interrupt_whose_traceback_is_kept(tiny, monkeypatch) -> None:
    """What was not left to the scheduler yet is nothing that close() waits for."""
    engine = tiny.load()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Batcher, "submit", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        engine.submit("a")
    engine.close(1)
    assert kept.value.__traceback__ is not None


def test_words_that_change_meanwhile(tiny) -> None:
    logits = {"outputs": ["logits"], "rows": {"logits": "tokens"}}
    held = Held(tiny, task="tagging", labels=list("wxyz"), **logits)
    found = []
    for _ in range(3):
        words: list[Any] = ["a", "b"]
        found.append(held.engine.submit([words]))
        words[0] = 7
    held.go_on.set()
    for one in found:
        assert one.result(LONG)[0].words == ("a", "b")
    assert held.engine.submit("a").result(LONG).words == ("a",)


def test_a_result_that_a_caller_sets(tiny) -> None:
    held = Held(tiny)
    for _ in range(3):
        held.engine.submit("a").set_result(1)
    held.go_on.set()
    assert held.engine.submit("a").result(LONG).vector[1] == 3
    held.engine.close(LONG)


def test_a_fault_of_the_scheduler_itself(tiny, monkeypatch) -> None:
    """Nobody waits for ever: all that it has gets the error, and it goes on."""
    held = Held(tiny)
    texts, batch = Line.texts, Line.batch

    def fail(*_: Any) -> Any:
        raise MemoryError

    for name, method in (("texts", texts), ("batch", batch)):
        for _ in range(3):
            monkeypatch.setattr(Line, name, fail)
            one = held.engine.submit("a")
            held.go_on.set()
            assert isinstance(one.exception(LONG), (MemoryError, BertrtError))
            monkeypatch.setattr(Line, name, method)
            assert held.engine.submit("a").result(LONG).vector[1] == 3
    assert held.engine.statistics().waiting == 0
    held.engine.close(LONG)


def test_a_callback_that_ends_its_thread(tiny) -> None:
    done, called = tiny.load().submit("a"), threading.Event()
    done.add_done_callback(lambda _: sys.exit())
    done.add_done_callback(lambda _: called.set())
    assert called.wait(LONG)


def test_callbacks_where_the_system_gives_no_thread(tiny, monkeypatch) -> None:
    """They are called all the same, and by a thread when there is one."""
    done, seen = tiny.load().submit("a"), []
    done.result(LONG)
    monkeypatch.setattr(batching, "_caller", batching._Caller())
    with monkeypatch.context() as patch:

        def fail(_: Any) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", fail)
        done.add_done_callback(lambda _: seen.append(threading.current_thread()))
        assert seen == [threading.current_thread()]
    called = threading.Event()
    done.add_done_callback(lambda _: called.set())
    assert called.wait(LONG)


def test_a_destructor_in_a_thread_of_the_scheduler(tiny, monkeypatch) -> None:
    """The collector may call it there, and its predict must not wait for that thread."""
    engine, seen, add = tiny.load(), [], Line.add

    class Left:
        def __del__(self) -> None:
            seen.append((threading.current_thread().name, engine.predict("a").vector[1]))

    def collect(line: Line, job: Any) -> None:
        left = Left()
        left.itself = left
        del left
        gc.collect()
        add(line, job)

    monkeypatch.setattr(Line, "add", collect)
    assert engine.submit("a").result(LONG).vector[1] == 3
    assert seen[0] == ("bertrt", 3)


def test_closing_refuses_what_waits_in_engines_of_other_settings(tiny) -> None:
    tiny.batching = Batching(tokens=3)
    held = Held(tiny)
    other = held.engine.with_settings({"normalize": True})
    # The first of them runs, for a batch has room for one.
    more = [other.submit("b") for _ in range(3)]
    with pytest.raises(BusyError):
        held.engine.close(0.01)
    for one in more[1:]:
        with pytest.raises(BertrtError, match="closed"):
            one.result(LONG)
    with pytest.raises(BertrtError, match="closed"):
        other.submit("a")
    held.go_on.set()
    more[0].exception(LONG)
    other.close(LONG)


def test_more_than_may_ever_wait(tiny) -> None:
    tiny.batching = Batching(queue=3)
    engine = tiny.load()
    with pytest.raises(QueueFull, match=r"4 inputs are above the limit of 3 .*in parts of so many"):
        engine.submit(["a"] * 4)
    assert len(engine.submit(["a"] * 3).result(LONG)) == 3
