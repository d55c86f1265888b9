"""The engine's threads: those that cannot be had, those of a forked child, and signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bertrt import DeviceError, Engine, _native

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")


def run_python(script: str, *arguments: Any, stack: int | None = None) -> str:
    """What a script prints, in a process of its own; `stack`: the size of its threads' stacks."""
    import resource

    def limit() -> None:
        if stack is not None:
            resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.RLIM_INFINITY))

    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            textwrap.dedent(script),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- threads that cannot be had ---------------------------------------------------------------

# A stack of 1 GiB a thread, and room for two and a half: two workers and the caller.
FEW = """
    import resource, sys
    from bertrt import Engine, _native

    def spare(stacks):
        (now,) = [int(l.split()[1]) << 10 for l in open("/proc/self/status") if "VmSize" in l]
        limit = now + int(stacks * 2**30) if stacks else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
"""


@needs_proc
@pytest.mark.parametrize(("stacks", "threads"), [(2.5, 3), (0.5, 1), (None, 5)])
def test_a_pool_has_the_threads_that_the_system_gives(stacks: float | None, threads: int) -> None:
    found = run_python(
        f"""{FEW}
    import os
    spare({stacks})
    others = len(os.listdir("/proc/self/task")) - 1
    pool = _native.kernels.ThreadPool(5)
    tasks = len(os.listdir("/proc/self/task")) - others
    print(pool.threads, tasks, pool.threads_at_once({threads}, 60))
    """,
        stack=1 << 30,
    )
    assert found.split() == [str(threads)] * 3


@needs_proc
def test_an_engine_runs_on_the_threads_that_the_system_gives(hugging) -> None:
    """It says so, and gives the same bits. A child has no more, though it could."""
    path = hugging.write()
    found = run_python(
        f"""{FEW}
    import os
    import numpy as np
    ids = np.arange(160).reshape(10, 16) % 30
    whole = Engine.load(sys.argv[1], threads=5)
    expected = whole.run(ids)["sequence_output"].tobytes()
    assert whole.threads == 5 and "The system gave" not in whole.explain()
    spare(2.5)
    engine = Engine.load(sys.argv[1], threads=5)
    assert engine.run(ids)["sequence_output"].tobytes() == expected
    print(engine.threads)
    print(engine.explain())
    sys.stdout.flush()
    spare(None)
    if os.fork() == 0:
        assert engine.run(ids)["sequence_output"].tobytes() == expected
        assert engine.threads == 3
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert engine.threads == 3
    """,
        path,
        stack=1 << 30,
    )
    lines = found.splitlines()
    assert lines[0] == "3"
    assert re.search(r"^threads +3$", found, re.MULTILINE)
    assert "The system gave 3 of the 5 threads that were asked for" in found


@pytest.mark.parametrize(("threads", "tokens"), [(1, 512), (3, 1536), (8, 4096), (100, 4096)])
def test_a_batch_is_no_longer_than_threads_have_use_of(hugging, threads: int, tokens: int) -> None:
    with Engine.load(hugging.write(), threads=threads) as engine:
        assert engine.batch_tokens == tokens


@needs_proc
def test_threads_that_a_user_may_not_have(hugging) -> None:
    """The limit on a user's processes, which does not bind root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become a user that has no process yet")
    script = """
    import os, resource, sys
    import bertrt.backends.native
    from bertrt import _native
    os.setuid(54321)
    limit = len(os.listdir("/proc/self/task")) + 3
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    pool = _native.kernels.ThreadPool(9)
    print(pool.threads, pool.threads_at_once(4, 60))
    """
    assert run_python(script).split() == ["4", "4"]


def test_predict_without_a_thread_for_the_tokenizer(hugging) -> None:
    """The tokenizers library panics where the system gives it none."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become a user that has no process yet")
    path = hugging.write(pooling=hugging.pooling, modules=hugging.modules("Transformer", "Pooling"))
    script = """
    import os, resource, sys
    from bertrt import Engine
    texts = ["the boat", "the sea"] * 50
    engine = Engine.load(sys.argv[1], threads=4)
    os.setuid(54321)
    limit = len(os.listdir("/proc/self/task"))
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    null = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    found = engine.predict(texts)
    os.dup2(null, 2)
    bits = [result.vector.tobytes() for result in found]
    assert bits == [result.vector.tobytes() for result in engine.predict(texts)]
    assert bits[:2] == [engine.predict(text).vector.tobytes() for text in texts[:2]]
    print(len(found), engine.threads)
    """
    assert run_python(script, path).split() == ["100", "4"]


@pytest.mark.parametrize("threads", [0, -1, _native.MAX_THREADS + 1])
def test_numbers_of_threads_that_make_no_sense(threads: int) -> None:
    with pytest.raises(DeviceError, match=f"threads is {threads}, expected 1 to"):
        _native.kernels.ThreadPool(threads)


# --- forks ------------------------------------------------------------------------------------


def in_child(work: Callable[[], bool]) -> None:
    """Fork, and hold that `work` is true in the child, which ends within two minutes."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(120)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("threads", [2, 4])
def test_a_child_has_all_threads_while_the_parents_are_busy(threads: int) -> None:
    """The parent's calls do not count in the child, nor do its locks hold."""
    pool = _native.kernels.ThreadPool(threads)
    asked = threading.Event()

    def work() -> None:  # waits for more threads than there are
        while not asked.is_set():
            pool.threads_at_once(threads + 1, 0.3)

    busy = [threading.Thread(target=work) for _ in range(3)]
    for thread in busy:
        thread.start()
    try:
        in_child(lambda: pool.threads_at_once(threads, 100) == threads)
    finally:
        asked.set()
    for thread in busy:
        thread.join()
    assert pool.threads_at_once(threads, 100) == threads


def test_a_grandchild_has_threads_of_its_own() -> None:
    pool = _native.kernels.ThreadPool(3)

    def work() -> bool:
        in_child(lambda: pool.threads_at_once(3, 100) == 3)
        right = pool.threads_at_once(3, 100) == 3
        in_child(lambda: pool.threads_at_once(3, 100) == 3)
        return right

    in_child(work)
    # A pool that is destroyed in a child waits for none of the parent's threads.
    gone = [_native.kernels.ThreadPool(3)]
    in_child(lambda: gone.clear() is None)
    assert pool.threads == 3


# --- signals, and the end ---------------------------------------------------------------------


def test_an_interrupt_ends_a_run(hugging) -> None:
    """A long run is left at once, not when all is computed."""
    path = hugging.write()
    os.environ["BERTRT_TRACE"] = "1"
    try:
        engine = Engine.load(path, threads=1)
    finally:
        del os.environ["BERTRT_TRACE"]
    native, outputs = engine._life._lease.backend._engine, ["pooled_output"]

    def operations() -> int:
        return sum(step[3] for step in native.steps())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for seqs in (1 << k for k in range(14, 21)):
            ids = np.full((seqs, 16), 7, np.int32)
            ends = np.arange(seqs + 1, dtype=np.int32) * 16
            done = operations()
            native.run(ids[:128].ravel(), ids[:128].ravel() * 0, ends[:129], None, outputs)
            part = operations() - done
            done = operations()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                native.run(ids.ravel(), ids.ravel() * 0, ends, None, outputs)
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            share = (operations() - done) / part / (seqs / 128)
            if 0 < share < 1:
                break
        assert 0 < share < 1
        assert engine.run(ids[:3])["sequence_output"].shape == (3, 16, 24)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("calls", ["engine.predict(['the boat'] * 40)", "engine.run(ids)"])
def test_a_process_ends_while_daemon_threads_are_inside(hugging, calls: str) -> None:
    path = hugging.write()
    script = f"""
    import sys, threading
    import numpy as np
    from bertrt import Engine
    engine = Engine.load(sys.argv[1], threads=2)
    ids = np.arange(160).reshape(10, 16) % 30
    inside = threading.Semaphore(0)
    def work():
        while True:
            {calls}
            inside.release()
    for _ in range(6):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(12):  # nearly all their time is inside
        inside.acquire()
    """
    for _ in range(4):
        assert run_python(script, path) == ""


def test_a_process_ends_while_daemon_threads_load(hugging) -> None:
    """They are in Python code that C++ has called, most of the time."""
    script = """
    import sys, threading, time
    from bertrt import Engine
    from bertrt.host.stored import Fetcher
    fetch = Fetcher.__call__
    inside = threading.Semaphore(0)
    def slow(self, wanted):
        inside.release()
        time.sleep(0.001)
        return fetch(self, wanted)
    Fetcher.__call__ = slow
    def work():
        while True:
            Engine.load(sys.argv[1], threads=1).close()
    for _ in range(6):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(12):
        inside.acquire()
    """
    path = hugging.write()
    for _ in range(4):
        assert run_python(script, path) == ""


# --- several engines --------------------------------------------------------------------------


@pytest.fixture
def four_cores():
    """Four cores for all engines of the process, as far as they know."""
    from bertrt.host.cores import usable_cores

    _native.share_cores(4)
    yield
    _native.share_cores(usable_cores())


@contextmanager
def inside(*pools: Any) -> Iterator[None]:
    """While each of the pools has calls, nearly without a break."""
    stop = threading.Event()

    def stay(pool: Any) -> None:
        while not stop.is_set():
            pool.threads_at_once(9, 0.5)  # which it will not get

    threads = [threading.Thread(target=stay, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_pools_share_the_cores(four_cores) -> None:
    """A pool whose call is alone has all its threads, and its share while others have calls."""
    one, other, third = (_native.kernels.ThreadPool(threads) for threads in (4, 4, 2))
    assert one.threads_at_once(4, 60) == 4
    for others, share in (((other,), 2), ((other, third), 1)):
        with inside(*others):
            for _ in range(600):
                if one.threads_at_once(4, 0.1) == share:
                    break
            else:
                pytest.fail(f"never just {share}")
    assert one.threads_at_once(4, 60) == 4


def test_a_child_forked_while_others_are_inside_is_alone(four_cores) -> None:
    pool, other = _native.kernels.ThreadPool(4), _native.kernels.ThreadPool(4)
    with inside(other):
        in_child(lambda: pool.threads_at_once(4, 100) == 4)
