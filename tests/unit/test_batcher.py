"""What callers submit: order, deadlines, parts, cancelling, closing, forks, and the same bits."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import signal
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from bertrt import (
    Batching,
    BertrtError,
    BusyError,
    DeadlineExceeded,
    Encoding,
    Engine,
    InvalidInputError,
    InvalidTypeError,
    OutOfMemoryError,
    QueueFull,
)

LONG = 60


class Held:
    """An engine of the tiny model whose backend waits in every run, until it is let go."""

    def __init__(self, tiny: Any, **batching: int) -> None:
        tiny.batching = Batching(**batching)
        self.engine = tiny.load()
        self.backend = tiny.backends[-1]
        self.runs = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.backend.before_run = self._wait

    def _wait(self) -> None:
        self.begun.release()
        assert self.runs.acquire(timeout=LONG)

    def block(self) -> Any:
        """A submission that runs, and goes on running."""
        first = self.engine.submit("!")
        assert self.begun.acquire(timeout=LONG)
        return first

    def step(self) -> None:
        """Let the run that is under way end, and the next one begin."""
        self.runs.release()
        assert self.begun.acquire(timeout=LONG)

    def free(self) -> None:
        """Let all runs go."""
        self.runs.release(1000)

    def settle(self, inputs: int) -> None:
        """Wait until so many inputs are tokenized and in line."""
        line = self.engine._routes._batcher._ready
        while sum(job.size for job in line) != inputs:
            time.sleep(0.001)

    def ran(self) -> list[list[list[int]]]:
        """Of each batch the ids of each sequence, without the special tokens."""
        return [
            [ids[1:-1].tolist() for ids in np.split(batch.token_ids, batch.cu_seqlens[1:-1])]
            for batch in self.backend.batches
        ]


A, B, HELLO, WORLD, MARK = 9, 10, 5, 6, 8


# --- what comes back --------------------------------------------------------------------------


def vectors(results: Any) -> Any:
    if isinstance(results, list):
        return [vectors(one) for one in results]
    return str(results) if isinstance(results, BertrtError) else results.vector.tolist()


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize(
    "batch", ["a", "", ["a"], ["a b", "hello", ""], ("a", "b"), [("a", "b"), ("hello", "")]]
)
def test_the_result_is_that_of_predict(tiny, pads: bool, batch: Any) -> None:
    tiny.pads = pads
    engine = tiny.load()
    expected = vectors(engine.predict(batch))
    submission = engine.submit(batch)
    assert vectors(submission.result(LONG)) == expected
    assert vectors(asyncio.run(engine.apredict(batch))) == expected
    ids = engine.tokenize(batch)
    assert vectors(engine.submit(ids).result(LONG)) == expected
    assert vectors(engine.predict(ids)) == expected
    assert submission.report is not None
    tokens = [len(own.ids) for own in (ids if isinstance(ids, list) else [ids])]
    assert submission.report.tokens == tuple(tokens)
    assert min(submission.report.tokenize, submission.report.queue, submission.report.execute) >= 0


def test_errors_are_those_of_predict(tiny) -> None:
    engine = tiny.load()
    texts = ["a", "\0", None, "b"]
    with pytest.raises(InvalidInputError) as told:
        engine.predict(texts)
    submission = engine.submit(texts)
    with pytest.raises(InvalidInputError) as caught:
        submission.result(LONG)
    assert str(caught.value) == str(told.value)
    assert len(tiny.backends[0].batches) == 0 and submission.report is None
    found = engine.submit(texts, on_error="return").result(LONG)
    assert vectors(found) == vectors(engine.predict(texts, on_error="return"))
    submission = engine.submit("\0", on_error="return")
    assert isinstance(submission.result(LONG), InvalidInputError)
    assert submission.report.tokens == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch": []}, InvalidInputError, "empty"),
        ({"batch": 3}, InvalidTypeError, "batch is a int"),
        ({"on_error": "no"}, InvalidInputError, "on_error"),
        ({"prompt": 3}, InvalidTypeError, "prompt"),
        ({"priority": 11}, InvalidInputError, "priority is 11; expected -10 to 10"),
        ({"priority": 1.0}, InvalidTypeError, "priority is a float"),
        ({"priority": True}, InvalidTypeError, "priority is a bool"),
        ({"priority": np.int64(-11)}, InvalidInputError, "priority is -11"),
        ({"priority": np.bool_(True)}, InvalidTypeError, "priority is a bool"),
        ({"priority": np.float32(1)}, InvalidTypeError, "priority is a float32"),
        ({"deadline": -1}, InvalidInputError, "deadline is -1"),
        ({"deadline": float("nan")}, InvalidInputError, "deadline is nan"),
        ({"deadline": "1"}, InvalidTypeError, "deadline is a str"),
    ],
)
def test_arguments_that_mean_nothing(tiny, arguments, error, message) -> None:
    engine = tiny.load()
    with pytest.raises(error, match=message):
        engine.submit(**{"batch": "a", **arguments})
    with pytest.raises(error, match=message):
        asyncio.run(engine.apredict(**{"batch": "a", **arguments}))
    assert engine.submit("a", deadline=10**400).result(LONG).vector[1] == 3
    assert engine.submit("a", priority=np.int8(-10)).result(LONG).vector[1] == 3


@pytest.mark.parametrize(
    ("batching", "error"),
    [
        ({"tokens": 0}, InvalidInputError),
        ({"tokens": 1.5}, InvalidTypeError),
        ({"queue": True}, InvalidTypeError),
        ({"queue": -1}, InvalidInputError),
    ],
)
def test_limits_that_mean_nothing(batching, error) -> None:
    with pytest.raises(error, match=next(iter(batching))):
        Batching(**batching)


def test_a_lone_callers_work_stays_with_one_thread(tiny) -> None:
    engine = tiny.load()
    threads: list[int] = []
    tiny.backends[-1].before_run = lambda: threads.append(threading.get_ident())
    for _ in range(20):
        assert engine.submit("a").result(LONG).vector[1] == 3
        # It has not told yet that it looks for more.
        while engine._routes._batcher._workers._first_works:
            time.sleep(0.001)
    assert len(threads) == 20
    assert len(set(threads)) == 1


def test_who_waits_with_a_timeout(tiny) -> None:
    held = Held(tiny)
    first = held.block()
    for seconds in (0, -1, 0.001):
        with pytest.raises(FuturesTimeoutError):
            first.result(seconds)
        with pytest.raises(FuturesTimeoutError):
            first.exception(timeout=seconds)
    held.free()
    assert first.result(timeout=LONG) is first.result(0) is first.result(-1)
    assert first.exception() is None


def test_several_threads_wait_for_one_submission(tiny) -> None:
    held = Held(tiny)
    first, found = held.block(), []
    threads = [threading.Thread(target=lambda: found.append(first.result())) for _ in range(5)]
    for thread in threads:
        thread.start()
    held.free()
    for thread in threads:
        thread.join(LONG)
    assert found == [first.result()] * 5


def test_batching_is_checked_and_pickled(tiny, hugging) -> None:
    with pytest.raises(InvalidTypeError, match="batching is a int"):
        Engine.load("/models/tiny", backend="tiny", batching=4096)
    path = hugging.write(pooling=hugging.pooling, modules=hugging.modules("Transformer", "Pooling"))
    engine = pickle.loads(pickle.dumps(Engine.load(path, batching=Batching(queue=1))))
    with pytest.raises(QueueFull):
        engine.submit(["a", "the"])
    assert engine.submit("the").result(LONG).vector.size


# --- order ------------------------------------------------------------------------------------


def test_one_batch_of_all_that_waits(tiny) -> None:
    held = Held(tiny)
    first = held.block()
    others = [held.engine.submit(text) for text in ("a", "b", ["hello", "world"])]
    held.settle(4)
    held.free()
    wait([first, *others], LONG)
    assert held.ran() == [[[MARK]], [[A], [B], [HELLO], [WORLD]]]


def test_priorities(tiny) -> None:
    held = Held(tiny, tokens=3)
    first = held.block()
    asked = [("a", 0), ("b", -5), ("hello", 5), ("world", 0)]
    others = [held.engine.submit(text, priority=priority) for text, priority in asked]
    held.settle(4)
    held.free()
    wait([first, *others], LONG)
    assert held.ran() == [[[MARK]], [[HELLO]], [[A]], [[WORLD]], [[B]]]


def test_what_fits_goes_past_what_does_not(tiny) -> None:
    held = Held(tiny, tokens=10)
    first = held.block()
    others = [held.engine.submit(text) for text in ("a b a b", "a b a b", "a b", "b")]
    held.settle(4)
    held.free()
    wait([first, *others], LONG)
    # The second has six tokens, and only four are free; so it begins the next batch.
    assert held.ran() == [[[MARK]], [[A, B, A, B], [A, B]], [[A, B, A, B], [B]]]


def test_a_sequence_longer_than_a_batch_runs_alone(tiny) -> None:
    held = Held(tiny, tokens=4)
    held.free()
    assert held.engine.submit("a b a b a b").result(LONG).vector[1] == 8


def test_small_ones_come_in_between_the_parts_of_a_large_one(tiny) -> None:
    held = Held(tiny, tokens=6)
    first = held.block()
    large = held.engine.submit(["a"] * 7)
    held.settle(7)
    small = held.engine.submit("b")
    held.settle(8)
    held.free()
    assert len(large.result(LONG)) == 7
    wait([first, small], LONG)
    assert held.ran()[1:3] == [[[A], [A]], [[B], [A]]]
    assert sum(len(batch) for batch in held.ran()) == 9


# --- deadlines, cancelling, limits ------------------------------------------------------------


def test_a_deadline_that_is_over(tiny) -> None:
    held = Held(tiny, tokens=3)
    first = held.block()
    late = held.engine.submit("a", deadline=0)
    early = held.engine.submit("b", deadline=3600)
    # It is told while the other one runs on.
    with pytest.raises(DeadlineExceeded, match=r"deadline was 0\.000") as caught:
        late.result(LONG)
    assert isinstance(caught.value, TimeoutError)
    held.free()
    wait([first, early], LONG)
    assert held.ran() == [[[MARK]], [[B]]]


def test_a_deadline_is_for_the_beginning(tiny) -> None:
    held = Held(tiny, tokens=3)
    large = held.engine.submit(["a", "b"], deadline=3600)
    assert held.begun.acquire(timeout=LONG)
    (job,) = held.engine._routes._batcher._ready
    job.deadline = 0.0
    held.free()
    assert len(large.result(LONG)) == 2


def test_cancelled_before_it_runs(tiny) -> None:
    held = Held(tiny, queue=2)
    first = held.block()
    others = [held.engine.submit(text) for text in "ab"]
    held.settle(2)
    assert others[0].cancel() and others[0].cancelled()
    held.settle(1)
    third = held.engine.submit("hello")  # there is room again
    held.settle(2)
    held.free()
    wait([first, *others, third], LONG)
    assert held.ran() == [[[MARK]], [[B], [HELLO]]]
    with pytest.raises(CancelledError):
        others[0].result()


def test_cancelled_between_its_parts(tiny) -> None:
    held = Held(tiny, tokens=3)
    large = held.engine.submit(["a"] * 5)
    assert held.begun.acquire(timeout=LONG)
    assert large.cancel()
    held.free()
    assert held.engine.submit("b").result(LONG).vector[1] == 3
    assert held.ran() == [[[A]], [[B]]]
    assert held.engine.statistics().waiting == 0


def test_what_runs_cannot_be_cancelled(tiny) -> None:
    held = Held(tiny)
    first = held.block()
    assert first.running() and not first.cancel()
    held.free()
    assert first.result(LONG).vector[1] == 3


def test_a_full_queue(tiny) -> None:
    held = Held(tiny, queue=3)
    first = held.block()
    others = [held.engine.submit(["a", "b"]), held.engine.submit("a")]
    with pytest.raises(QueueFull, match=r"3 inputs wait, and 1 more .* limit of 3"):
        held.engine.submit("b")
    with pytest.raises(QueueFull):
        asyncio.run(held.engine.apredict("b"))
    assert held.engine.statistics().waiting == 3
    held.free()
    wait([first, *others], LONG)
    assert held.engine.submit("b").result(LONG).vector[1] == 3
    with pytest.raises(QueueFull, match="4 inputs are above the limit of 3"):
        held.engine.submit(["a"] * 4)
    # predict waits, and does not fail.
    assert len(held.engine.predict(["a"] * 4)) == 4


# --- asyncio, callbacks -----------------------------------------------------------------------


def test_many_coroutines(tiny) -> None:
    engine = tiny.load()
    texts = ["a", "a b", "hello world", "b"] * 50

    async def ask() -> Any:
        return await asyncio.gather(*(engine.apredict(text) for text in texts))

    assert vectors(list(asyncio.run(ask()))) == vectors([engine.predict(text) for text in texts])


def test_a_cancelled_task(tiny) -> None:
    held = Held(tiny)
    first = held.block()

    async def ask() -> None:
        task = asyncio.create_task(held.engine.apredict("a"))
        while not held.engine.statistics().waiting:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    held.free()
    wait([first], LONG)
    assert held.engine.submit("b").result(LONG).vector[1] == 3
    assert held.ran() == [[[MARK]], [[B]]]


def test_a_loop_that_is_gone(tiny) -> None:
    held = Held(tiny)

    async def ask() -> None:
        asyncio.get_running_loop().create_task(held.engine.apredict("a"))
        await asyncio.sleep(0)

    asyncio.run(ask())
    held.free()
    assert held.engine.submit("b").result(LONG).vector[1] == 3


def test_callbacks_hold_up_nobody(tiny) -> None:
    engine = tiny.load()
    go_on, called = threading.Event(), threading.Event()
    for _ in range(3):
        engine.submit("a").add_done_callback(lambda _: go_on.wait(LONG))
    assert engine.submit("b").result(LONG).vector[1] == 3
    go_on.set()
    engine.submit("b").add_done_callback(lambda done: called.set() if done.result() else None)
    assert called.wait(LONG)


# --- errors of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError("2 bytes")])
def test_an_error_is_that_of_its_own_inputs(tiny, error: Exception) -> None:
    held = Held(tiny)
    first = held.block()
    before = held.backend.run

    def run(batch: Any, outputs: Any) -> Any:
        if HELLO in batch.token_ids:
            raise error
        return before(batch, outputs)

    held.backend.run = run
    others = [held.engine.submit(text) for text in ("a", "hello", "b")]
    held.settle(3)
    held.free()
    assert [others[i].result(LONG).vector[1] for i in (0, 2)] == [3, 3]
    with pytest.raises(OutOfMemoryError if isinstance(error, MemoryError) else ValueError):
        others[1].result(LONG)
    wait([first], LONG)


def test_a_tokenizer_that_fails_for_one(tiny, monkeypatch) -> None:
    held = Held(tiny)
    tokenizer = held.engine._model.tokenizer
    before = tokenizer.encode

    def encode(batch: Any, **options: Any) -> Any:
        if "hello" in batch:
            raise RuntimeError("no")
        return before(batch, **options)

    monkeypatch.setattr(tokenizer, "encode", encode)
    held.free()
    others = [held.engine.submit(text) for text in ("a", "hello", "b")]
    assert [others[i].result(LONG).vector[1] for i in (0, 2)] == [3, 3]
    with pytest.raises(RuntimeError, match="no"):
        others[1].result(LONG)


# --- ids --------------------------------------------------------------------------------------


def encoding(ids: Any, types: Any = None, **more: Any) -> Encoding:
    ids = np.array(ids)
    return Encoding(ids, np.zeros_like(ids) if types is None else np.array(types), **more)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (encoding([2, 11, 3]), r"batch\[0\].ids\[1\] is 11; the model takes 0 to 10"),
        (encoding([2, -1, 3]), r"batch\[0\].ids\[1\] is -1"),
        (encoding([2, 3], [0, 2]), r"batch\[0\].types\[1\] is 2"),
        (encoding([2, 3], [0]), r"types has 1 entries; expected 2"),
        (encoding([2.0, 3.0]), r"ids has the dtype float64; expected integers"),
        (encoding([[2, 3]]), r"ids has the shape \(1, 2\)"),
        (encoding([2] * 9), r"has 9 ids; the model takes 1 to 8"),
        (encoding(np.zeros(0, int)), "has 0 ids"),
        (encoding([2, 3], prompt=3), "prompt is 3"),
        ([encoding([2, 3]), "a"], r"batch\[1\] is a str among encodings"),
        (["a", encoding([2, 3])], r"batch\[0\] is a str among encodings"),
    ],
)
def test_ids_that_do_not_fit(tiny, batch, message) -> None:
    engine = tiny.load()
    for call in (engine.predict, lambda ids: engine.submit(ids).result(LONG)):
        with pytest.raises((InvalidInputError, InvalidTypeError), match=message):
            call(batch)
    assert not tiny.backends[0].batches


def test_ids_of_any_integers(tiny) -> None:
    engine = tiny.load()
    for kind in (np.int8, np.uint16, np.int64):
        made = Encoding(np.array([2, 9, 3], kind), np.zeros(3, kind), truncated=True)
        found = engine.predict(made)
        assert found.vector.tolist() == engine.predict("a").vector.tolist() and found.truncated
    with pytest.raises(InvalidInputError, match="prompt"):
        engine.predict(made, prompt="a: ")


def test_ids_remember_their_prompt(hugging) -> None:
    """Where its tokens are left out of the pooling."""
    pooling = {**hugging.pooling, "include_prompt": False}
    path = hugging.write(pooling=pooling, modules=hugging.modules("Transformer", "Pooling"))
    engine = Engine.load(path, threads=1)
    texts = ["the boat", "the sea"]
    ids = engine.tokenize(texts, prompt="the cafe: ")
    assert {one.prompt for one in ids} == {len(engine.tokenize("the cafe: ").ids) - 1}
    expected = vectors(engine.predict(texts, prompt="the cafe: "))
    assert vectors(engine.predict(ids)) == expected != vectors(engine.predict(texts))


@pytest.mark.parametrize("task", ["question-answering", "tagging"])
def test_ids_for_tasks_that_need_words(tiny, task: str) -> None:
    engine = tiny.load(task=task, pooling=None, outputs=["logits"], rows={"logits": "tokens"})
    with pytest.raises(InvalidInputError, match="comes in ids, which do not say where its words"):
        engine.predict([encoding([2, 9, 3])])


def test_ids_with_masks(tiny) -> None:
    engine = tiny.load(task="fill-mask", pooling=None, outputs=["masked_lm_outputs"])
    assert engine.predict(encoding([2, 9, 4, 3])) == engine.predict("a [MASK]")
    with pytest.raises(InvalidInputError, match=r"holds no \[MASK\]"):
        engine.predict(encoding([2, 9, 3]))


# --- predict among others ---------------------------------------------------------------------


def test_predict_goes_with_others(tiny) -> None:
    held = Held(tiny)
    first = held.block()
    found: dict[str, Any] = {}

    def ask(text: str) -> None:
        found[text] = held.engine.predict(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("a", "b", "hello")]
    for thread in threads:
        thread.start()
    held.settle(3)
    held.free()
    for thread in threads:
        thread.join(LONG)
    assert sorted(held.ran()[1]) == [[HELLO], [A], [B]]
    assert {text: one.vector[2] for text, one in found.items()} == {"a": 14, "b": 15, "hello": 10}
    wait([first], LONG)


def test_a_long_list_goes_with_others_part_by_part(tiny) -> None:
    held = Held(tiny, tokens=6)
    first = held.block()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(held.engine.predict(["a"] * 200)))
    thread.start()
    held.settle(2)
    held.free()
    thread.join(LONG)
    assert len(found) == 200 and all(len(batch) <= 2 for batch in held.ran())
    wait([first], LONG)


def test_alone_predict_needs_no_other_thread(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    seen: list[threading.Thread] = []
    backend.before_run = lambda: seen.append(threading.current_thread())
    engine.predict(["a"])
    assert seen == [threading.current_thread()] and engine.statistics().batches == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_an_interrupt_while_predict_waits(tiny) -> None:
    held = Held(tiny)
    first = held.block()

    class LeftError(Exception):
        pass

    def leave(*_: Any) -> None:
        raise LeftError

    before = signal.signal(signal.SIGALRM, leave)
    try:
        with pytest.raises(LeftError):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            held.engine.predict("a")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    held.free()
    wait([first], LONG)
    assert held.engine.submit("b").result(LONG).vector[1] == 3
    assert [[A]] not in held.ran()
    held.engine.close(timeout=0)


# --- the end ----------------------------------------------------------------------------------


def test_close_waits_for_what_was_submitted(tiny) -> None:
    held = Held(tiny, tokens=3)
    first = held.block()
    others = [held.engine.submit(text) for text in "ab"]
    closer = threading.Thread(target=held.engine.close)
    closer.start()
    while not held.engine._life.closed:
        time.sleep(0.001)
    with pytest.raises(BertrtError, match="closed"):
        held.engine.submit("a")
    assert closer.is_alive()
    held.free()
    closer.join(LONG)
    assert not closer.is_alive() and held.backend.closed == 1
    assert all(one.result(LONG).vector[1] == 3 for one in (first, *others))


def test_close_fails_what_it_cannot_wait_for(tiny) -> None:
    held = Held(tiny, tokens=3)
    first = held.block()
    others = [held.engine.submit(text) for text in "ab"]
    with pytest.raises(BusyError, match=r"submit, for \d"):
        held.engine.close(timeout=0.01)
    for one in others:
        with pytest.raises(BertrtError, match="closed"):
            one.result(LONG)
    assert not held.backend.closed
    held.free()
    assert first.result(LONG).vector[1] == 3
    held.engine.close(LONG)
    assert held.backend.closed == 1 and held.ran() == [[[MARK]]]


def test_an_engine_that_nobody_refers_to(tiny) -> None:
    """It answers what was submitted; then its backend is closed and its threads end."""
    before = set(threading.enumerate())
    held = Held(tiny)
    first = held.block()
    second = held.engine.submit("a")
    routes = weakref.ref(held.engine._routes._batcher)
    held.engine = None
    held.free()
    assert second.result(LONG).vector[1] == 3
    ends = time.monotonic() + LONG
    while (routes() or not held.backend.closed) and time.monotonic() < ends:
        gc.collect()
        time.sleep(0.001)
    assert routes() is None and held.backend.closed == 1 and first.done()
    for thread in set(threading.enumerate()) - before:
        if thread.name == "bertrt":
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_others_wait(tiny) -> None:
    held = Held(tiny)
    held.backend.survives_fork = True
    first = held.block()
    second = held.engine.submit("a")

    def work() -> bool:
        for one in (first, second):
            with pytest.raises(BertrtError, match="before a fork"):
                one.result(LONG)
        held.runs = threading.Semaphore(1000)
        own = held.engine.submit("b").result(LONG).vector[1] == 3
        same = held.engine.predict("b").vector[1] == 3
        held.engine.close(timeout=0)
        return own and same and held.engine.statistics().waiting == 0

    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LONG)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held.free()
    assert {one.result(LONG).vector[1] for one in (first, second)} == {3}


def test_statistics(tiny) -> None:
    held = Held(tiny)
    first = held.block()
    others = [held.engine.submit(["a"] * count) for count in (2, 3)]
    held.settle(5)
    assert held.engine.statistics().waiting == 5
    held.free()
    wait([first, *others], LONG)
    held.engine.submit("b").result(LONG)
    found = held.engine.statistics()
    assert (found.batches, found.sequences, found.tokens, found.waiting) == (3, 7, 21, 0)
    assert found.by_sequences == {1: 2, 8: 1} and found.by_tokens == {4: 2, 16: 1}


# --- the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_every_road_gives_the_bits_of_predict(hugging, precision: str, seed: int) -> None:
    """Threads that ask in every way at once, with priorities, deadlines, and cancelling."""
    path = hugging.write(pooling=hugging.pooling, modules=hugging.modules("Transformer", "Pooling"))
    draw = random.Random(seed)
    words = ["the", "boat", "boats", "cafe", "sea", "a"]
    texts = [" ".join(draw.choices(words, k=draw.choice([1, 2, 5, 12]))) for _ in range(40)]
    with Engine.load(path, precision=precision, threads=1) as engine:
        expected = {text: engine.predict(text).vector.tobytes() for text in texts}
    engine = Engine.load(
        path, precision=precision, threads=2, batching=Batching(tokens=draw.choice([8, 40, 4096]))
    )
    failures: list[str] = []
    answered: list[int] = []

    def check(asked: list[str], results: Any) -> None:
        for text, result in zip(asked, results, strict=True):
            if result.vector.tobytes() != expected[text]:
                failures.append(text)
        answered.append(len(asked))

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(25):
            asked = [draw.choice(texts) for _ in range(draw.choice([1, 1, 1, 2, 7, 90]))]
            road = draw.randrange(5)
            if road == 0:
                check(asked, engine.predict(asked))
            elif road == 1:
                check(asked, asyncio.run(engine.apredict(asked, priority=draw.randint(-3, 3))))
            elif road == 2:
                check(asked, engine.submit(engine.tokenize(asked)).result(LONG))
            elif road == 3:
                late = engine.submit(asked, deadline=draw.choice([0, 0.001, 0.01, 60]))
                with suppress(DeadlineExceeded):
                    check(asked, late.result(LONG))
            else:
                submission = engine.submit(asked)
                if draw.random() < 0.7:
                    submission.cancel()
                if not submission.cancelled():
                    check(asked, submission.result(LONG))

    threads = [threading.Thread(target=work, args=(1000 * seed + i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    assert not failures and len(answered) > 200
    engine.close(timeout=LONG)
    assert engine.statistics().waiting == 0
