"""Children that are forked while the parent's threads are in the middle of everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bertrt import Engine

THREADS = 3
FORKS = 200

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs fork and /proc"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


class Asked:
    """An engine, and what it answers."""

    def __init__(self, path: Any) -> None:
        self.engine = Engine.load(path, threads=THREADS)
        self.texts = ["the boat", "the cafe the sea", "boats"] * 4
        self.ids = np.arange(160).reshape(10, 16) % 30
        self.run, self.predict = self.answers()

    def answers(self) -> tuple[bytes, list[bytes]]:
        run = self.engine.run(self.ids)["sequence_output"].tobytes()
        return run, [result.vector.tobytes() for result in self.engine.predict(self.texts)]

    def answers_in_a_child(self) -> bool:
        """As in the parent, with all threads."""
        # All that lives on of the parent is this thread; MXNet, where it is loaded, has begun some
        # of its own by now.
        others = len(os.listdir("/proc/self/task")) - 1
        same = self.answers() == (self.run, self.predict)
        tasks = len(os.listdir("/proc/self/task")) - others
        return same and self.engine.threads == tasks == THREADS

    @contextmanager
    def busy(self, *others: Callable[[], Any]) -> Iterator[None]:
        """While two threads ask it, and `others` do what they do, again and again."""
        stop, failures = threading.Event(), []

        def work(ask: Callable[[], bool]) -> None:
            while not stop.is_set():
                if not ask():
                    failures.append(ask)

        asking: list[Callable[[], bool]] = [
            lambda: self.engine.run(self.ids)["sequence_output"].tobytes() == self.run,
            lambda: self.answers()[1] == self.predict,
            *(lambda other=other: other() is None for other in others),
        ]
        threads = [threading.Thread(target=work, args=(ask,)) for ask in asking]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures


def fork(work: Callable[[], bool]) -> int:
    """The status of a child: 0 where `work` is true there; it has two minutes."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def asked(hugging) -> Asked:
    return Asked(
        hugging.write(pooling=hugging.pooling, modules=hugging.modules("Transformer", "Pooling"))
    )


def test_forks_while_busy(asked) -> None:
    with asked.busy():
        statuses = [fork(asked.answers_in_a_child) for _ in range(FORKS)]
    assert statuses == [0] * FORKS


def test_forks_while_loading(asked) -> None:
    """Another thread is anywhere in loading an engine, closing it, or pickling one."""
    path = asked.engine._model.path

    def load() -> None:
        Engine.load(path, threads=2).close()

    def child() -> bool:
        right = asked.answers_in_a_child()
        with Engine.load(path, threads=2) as engine:
            again = engine.run(asked.ids)["sequence_output"].tobytes() == asked.run
        asked.engine.close(timeout=0)
        return right and again

    with asked.busy(load):
        assert [fork(child) for _ in range(50)] == [0] * 50


def test_forks_from_another_thread_and_of_forks(asked) -> None:
    def child() -> bool:
        right = asked.answers_in_a_child()
        with asked.busy():
            return right and [fork(asked.answers_in_a_child) for _ in range(3)] == [0] * 3

    found: list[int] = []
    with asked.busy():
        forking = threading.Thread(target=lambda: found.extend(fork(child) for _ in range(10)))
        forking.start()
        forking.join()
    assert found == [0] * 10


def test_a_pool_of_forked_processes(asked) -> None:
    with asked.busy():
        context = multiprocessing.get_context("fork")
        global _asked
        _asked = asked
        with context.Pool(4) as pool:
            found = pool.map_async(_answers, range(40)).get(120)
    assert found == [(asked.run, asked.predict)] * 40


_asked: Asked


def _answers(_: int) -> tuple[bytes, list[bytes]]:
    return _asked.answers()
