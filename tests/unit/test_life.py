"""An engine's life: interrupts at every instruction, signal handlers, closing, forks."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertrt.engine.engine
import bertrt.engine.life
import bertrt.engine.routes
from bertrt.errors import BertrtError, BusyError, InvalidInputError, InvalidTypeError

IDS = np.array([[2, 5, 6, 3], [2, 9, 3, 0]])
OF_THE_ENGINE = {
    module.__file__ for module in (bertrt.engine.engine, bertrt.engine.life, bertrt.engine.routes)
}

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """What hangs in the main thread ends with an error."""

    def give_up(*_: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """A function that has a function called by SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handle: signal.signal(signal.SIGUSR1, lambda *_: handle())
    signal.signal(signal.SIGUSR1, before)


# --- interrupts at every instruction ----------------------------------------------------------


def interrupt_at(number: int, action: Callable[[], Any]) -> BaseException | None:
    """Run an action and raise KeyboardInterrupt before the instruction of this number, of those in
    the engine's own files. The exception with its traceback; None if there are fewer."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        # What a destructor raises, nobody sees.
        if frame.f_code.co_filename not in OF_THE_ENGINE or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if count == number:
                sys.settrace(None)
                count += 1
                raise KeyboardInterrupt
            count += 1
        return trace

    before = sys.gettrace()
    # Python 3.12 looks whether any frame wants instructions when tracing begins.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(before)
    assert count <= number, "an interrupt was lost"
    return None


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "predict": lambda engine: engine.predict(["a", "b"]),
    "run": lambda engine: engine.run(IDS),
    "threads": lambda engine: engine.threads,
    "explain": lambda engine: engine.explain(),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_an_interrupt_anywhere_in_a_call(tiny, name: str) -> None:
    """It leaves nobody inside, and an engine that works and can be closed."""
    engine = tiny.load()
    number = 0
    while interrupt_at(number, lambda: ACTIONS[name](engine)):
        assert engine._life._open() == [], f"instruction {number}"
        number += 1
    assert number > 30
    assert engine.predict("a").vector[1] == 3
    engine.close(timeout=0)
    assert tiny.backends[0].closed == 1


@pytest.mark.parametrize("name", ["predict", "threads"])
def test_an_interrupt_whose_traceback_is_kept(tiny, name: str) -> None:
    """Frames that live on in a traceback are nobody's stay inside: others do not wait for them."""
    number = 0
    while True:
        engine = tiny.load()
        error = interrupt_at(number, lambda: ACTIONS[name](engine))  # noqa: B023
        if error is None:
            break
        found: list[BaseException | None] = []

        def close() -> None:
            try:
                engine.close(timeout=30)  # noqa: B023
                found.append(None)  # noqa: B023
            except BaseException as error:
                found.append(error)  # noqa: B023

        closer = threading.Thread(target=close)
        closer.start()
        closer.join()
        assert found == [None], f"instruction {number}"
        del error
        assert tiny.backends[-1].closed == 1
        number += 1
    assert number > 30


def test_an_interrupt_anywhere_in_close(tiny) -> None:
    """The engine works on or is closed, and closing it again ends it."""
    number = 0
    while True:
        engine = tiny.load()
        backend = tiny.backends[-1]
        if not interrupt_at(number, engine.close):
            break
        if backend.closed or engine._life.closed:
            with pytest.raises(BertrtError, match="closed"):
                engine.predict("a")
        else:
            assert engine.predict("a").vector[1] == 3
        engine.close(timeout=0)
        assert backend.closed == 1, f"instruction {number}"
        number += 1
    assert number > 30 and backend.closed == 1


def test_an_interrupt_anywhere_in_loading_again(tiny) -> None:
    """As after a fork, where the backend did not survive."""
    engine = tiny.load()
    number = 0
    while True:
        engine._life.after_fork()
        loaded = len(tiny.backends)
        error = interrupt_at(number, lambda: engine.threads)
        if error is None:
            break
        del error
        assert engine._life._open() == []
        assert engine.predict("a").vector[1] == 3
        assert loaded < len(tiny.backends) <= loaded + 2
        number += 1
    engine.close(timeout=0)
    assert tiny.backends[-1].closed == 1


# --- closing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [lambda e: e.predict("a"), lambda e: e.run(IDS)])
def test_close_in_a_signal_handler(tiny, on_signal, use) -> None:
    """The call that was interrupted goes on to its result; then the backend is closed."""
    engine = tiny.load()
    (backend,) = tiny.backends
    expected = pickle.dumps(use(engine))
    states: list[tuple[bool, int]] = []

    def handle() -> None:
        engine.close()
        states.append((engine._life.closed, backend.closed))
        with pytest.raises(BertrtError, match="closed"):
            engine.predict("a")

    on_signal(handle)
    backend.before_run = lambda: signal.raise_signal(signal.SIGUSR1)
    assert pickle.dumps(use(engine)) == expected
    assert states == [(True, 0)]
    assert backend.closed == 1
    with pytest.raises(BertrtError, match="closed"):
        use(engine)


def test_close_at_any_time(tiny) -> None:
    """A timer closes engines in the middle of whatever their thread is at."""
    ended = 0

    def close(*_: Any) -> None:
        engine.close()

    before = signal.signal(signal.SIGALRM, close)
    try:
        for i in range(100):
            engine = tiny.load()
            (backend,) = tiny.backends[-1:]
            signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + i % 20))
            try:
                while True:
                    assert engine.predict("a").vector[1] == 3
            except BertrtError as error:
                assert "closed" in str(error)
                ended += 1
            assert backend.closed == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == 100


def run(engine: Any) -> Any:
    """As `predict` of "a"."""
    return bertrt.Embedding(engine.run(IDS[:1, :3])["pooled_output"][0], False)


class Inside:
    """A thread that is inside an engine until it is let go."""

    def __init__(self, engine: Any, backend: Any, name: str = "the worker") -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.at_the_end: Callable[[], Any] = lambda: None
        me = threading.local()
        # `run` is always the caller's own.
        ask = engine.predict if engine._life.crowd == 0 else lambda text: run(engine)

        def hold() -> None:
            if getattr(me, "inside", False):
                self.started.set()
                assert self.go_on.wait(60)
                self.at_the_end()

        def work() -> None:
            me.inside = True
            try:
                self.results.append(ask("a"))
            except BaseException as error:
                self.errors.append(error)

        before = backend.before_run
        backend.before_run = lambda: (before(), hold())
        self.thread = threading.Thread(target=work, name=name)
        self.thread.start()
        assert self.started.wait(60)

    def finish(self) -> None:
        self.go_on.set()
        self.thread.join(60)
        assert not self.thread.is_alive() and not self.errors
        assert self.results[0].vector[1] == 3


def test_close_says_who_is_inside(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    inside = Inside(engine, backend)
    for _ in range(2):
        with pytest.raises(BusyError, match=r"predict in thread 'the worker', for \d") as caught:
            engine.close(timeout=0.01)
    assert isinstance(caught.value, TimeoutError) and "0.01 seconds" in str(caught.value)
    with pytest.raises(BertrtError, match="closed"):
        engine.predict("a")
    assert not backend.closed
    inside.finish()
    # The last one to leave has closed it, though the error and its traceback are kept.
    assert backend.closed == 1
    engine.close(timeout=0)
    assert backend.closed == 1


def test_close_waits_as_long_as_it_takes(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    inside = Inside(engine, backend)
    closer = threading.Thread(target=engine.close, args=(None,))
    closer.start()
    while not engine._life.closed:
        time.sleep(0.001)
    assert closer.is_alive()
    inside.finish()
    closer.join(60)
    assert not closer.is_alive() and backend.closed == 1


def test_close_inside_a_call_waits_for_the_others(tiny, on_signal) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    inside = Inside(engine, backend)
    seen: list[str] = []

    def handle() -> None:
        with pytest.raises(BusyError) as caught:
            engine.close(timeout=0.01)
        seen.append(str(caught.value))

    on_signal(handle)
    backend.before_run = lambda: signal.raise_signal(signal.SIGUSR1)
    assert engine.predict("a").vector[1] == 3
    (message,) = seen
    assert "'the worker'" in message and threading.current_thread().name not in message
    inside.finish()
    assert backend.closed == 1


def test_threads_that_close_inside_their_calls_do_not_wait_for_each_other(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    both = [Inside(engine, backend, name) for name in ("one", "other")]
    for each in both:
        each.at_the_end = engine.close
    for each in both:
        each.go_on.set()
    for each in both:
        each.finish()
    assert backend.closed == 1


def test_a_kept_error_keeps_nothing_open(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    with pytest.raises(InvalidInputError) as caught:
        engine.predict([])
    engine.close()
    assert backend.closed == 1 and caught.value.__traceback__ is not None


def test_an_interrupted_with_block(tiny) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tiny.load() as engine:
        tiny.backends[0].before_run = interrupt
        engine.predict("a")
    assert tiny.backends[0].closed == 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True, [1]])
def test_a_timeout_that_is_none(tiny, timeout: Any) -> None:
    engine = tiny.load()
    with pytest.raises((InvalidInputError, InvalidTypeError), match="timeout is"):
        engine.close(timeout)
    assert engine.predict("a").vector[1] == 3
    engine.close(np.float32(1))


@pytest.mark.parametrize("timeout", [Fraction(1, 1000), np.float64(0.001)])
def test_any_number_is_a_timeout(tiny, timeout: Any) -> None:
    engine = tiny.load()
    inside = Inside(engine, tiny.backends[0])
    with pytest.raises(BusyError, match=r"0\.001 seconds"):
        engine.close(timeout)
    inside.go_on.set()
    engine.close(10**400)
    inside.finish()


def test_threads_that_load_run_share_close_and_pickle() -> None:
    """For a few seconds; under ThreadSanitizer for longer."""
    script = Path(__file__).parents[1] / "concurrency.py"
    done = subprocess.run(
        [sys.executable, script, "5"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "run_shared" in done.stdout


COLLECTING = """
import gc, threading, time
from bertrt.engine.life import Call

class Loop:
    def __init__(self):
        self.itself = self
    def __del__(self):
        time.sleep(1e-5)

def start_threads():
    while collecting:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

collecting, call = True, Call("predict")
threading.Thread(target=start_threads, daemon=True).start()
gc.set_threshold(1)
for _ in range(1000):
    Loop()
    call.is_under_way()
collecting = False
print(gc.isenabled())
"""


def test_garbage_is_collected_while_threads_start_and_close_looks_for_calls() -> None:
    """Where Python's own lock for threads is held while a destructor runs, nobody goes on."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTING], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", ""), done.stderr


# --- forks ------------------------------------------------------------------------------------


def in_child(work: Callable[[], bool]) -> None:
    """Fork, and hold that `work` is true in the child, which ends within a minute."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 60)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("survives", [False, True])
def test_a_fork_while_others_are_inside(tiny, survives: bool) -> None:
    """They are not inside in the child, which waits for none of them."""
    engine = tiny.load()
    (backend,) = tiny.backends
    backend.survives_fork = survives
    inside = Inside(engine, backend)

    def work() -> bool:
        right = engine.predict("a").vector[1] == 3
        used = tiny.backends[-1]
        engine.close(timeout=0)
        return right and used.closed == 1 and backend.closed == survives

    in_child(work)
    inside.finish()
    assert engine.predict("a").vector[1] == 3
    engine.close(timeout=0)
    assert backend.closed == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_inside_a_call(tiny) -> None:
    """Parent and child both go on with it."""
    engine = tiny.load()
    (backend,) = tiny.backends
    backend.survives_fork = True
    children: list[int] = []

    def fork() -> None:
        backend.before_run = lambda: None
        if os.getpid() == parent:
            children.append(os.fork())
            if not children[0]:
                engine.close(timeout=0)

    parent = os.getpid()
    backend.before_run = fork
    status = 1
    try:
        right = engine.predict("a").vector[1] == 3
        status = 0 if right and backend.closed == (os.getpid() != parent) else 2
    finally:
        if os.getpid() != parent:
            os._exit(status)
    assert status == 0
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_model_is_read(tiny) -> None:
    """A property that a thread computes is no other process's, nor another model's, to wait for."""
    from dataclasses import replace

    model = tiny.model("/models/tiny")
    reading, go_on = threading.Event(), threading.Event()

    def read() -> Any:
        reading.set()
        assert go_on.wait(60)
        return model.plan()

    slow = replace(model, _read_plan=read)
    thread = threading.Thread(target=slow.plan)
    thread.start()
    assert reading.wait(60)
    other = replace(model)
    in_child(lambda: other.plan() is not None)
    assert other.plan() is not None
    go_on.set()
    thread.join(60)
