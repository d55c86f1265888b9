"""Long lists on a backend that runs several batches at once: order, bits, errors, what overlaps."""

from __future__ import annotations

import gc
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from bertrt import Batching, BertrtError, InvalidInputError
from bertrt.engine import overlap

LONG = 60
WORDS = ["a", "b", "hello", "world", "!"]


@pytest.fixture(autouse=True)
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_CHARACTERS_AT_ONCE", 40)


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(count)]


def shown(results: Any) -> list[Any]:
    return [str(one) if isinstance(one, BertrtError) else repr(one) for one in results]


def load(tiny: Any, tokens: int | None = 12, at_once: int = 2, **settings: Any) -> Any:
    tiny.batching = Batching(tokens=tokens)
    engine = tiny.load(**settings)
    tiny.backends[-1].at_once = at_once
    return engine


@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize("tokens", [1, 12, 1000])
@pytest.mark.parametrize("count", [65, 200])
def test_results_are_those_of_one_batch_after_the_other(tiny, count, tokens, at_once) -> None:
    batch = texts(count)
    want = shown(load(tiny, tokens, at_once=1).predict(batch))
    assert shown(load(tiny, tokens, at_once=at_once).predict(batch)) == want
    ran = tiny.backends[-1].batches
    assert sum(one.seqs for one in ran) == count
    assert all(one.tokens <= tokens or one.seqs == 1 for one in ran)


def test_masks_of_different_numbers(tiny) -> None:
    batch = ["a [MASK] b", "[MASK] hello [MASK]", "[MASK]"] * 40
    masks: dict[str, Any] = {"task": "fill-mask", "pooling": None, "outputs": ["masked_lm_outputs"]}
    want = shown(load(tiny, at_once=1, **masks).predict(batch))
    assert shown(load(tiny, **masks).predict(batch)) == want


def test_errors_are_told_together(tiny) -> None:
    batch: list[Any] = texts(150)
    batch[3], batch[140] = "\0", "\ud800"
    with pytest.raises(InvalidInputError) as told:
        load(tiny, at_once=1).predict(batch)
    engine = load(tiny)
    with pytest.raises(InvalidInputError) as found:
        engine.predict(batch)
    assert str(found.value) == str(told.value)
    assert not tiny.backends[-1].batches
    want = shown(load(tiny, at_once=1).predict(batch, on_error="return"))
    assert shown(engine.predict(batch, on_error="return")) == want


def test_a_batch_that_fails(tiny) -> None:
    engine = load(tiny)
    backend = tiny.backends[-1]
    count = iter(range(1000))

    def fail() -> None:
        if next(count) == 3:
            raise ZeroDivisionError("the fourth")

    backend.before_run = fail
    with pytest.raises(ZeroDivisionError, match="the fourth"):
        engine.predict(texts(200))
    assert not [one for one in threading.enumerate() if one.name.startswith("bertrt-batch")]
    backend.before_run = lambda: None
    assert len(engine.predict(texts(200))) == 200
    engine.close(timeout=LONG)
    assert backend.closed == 1


def test_an_interrupt_ends_it_and_keeps_nothing_open(tiny) -> None:
    # A shell has what it starts in the background ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()  # in a destructor an interrupt would be lost
    engine = load(tiny)
    (*_, backend) = tiny.backends
    once = iter([signal.SIGINT])

    def interrupt() -> None:
        for number in once:
            signal.raise_signal(number)

    backend.before_run = interrupt
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            engine.predict(texts(200))
    finally:
        signal.signal(signal.SIGINT, before)
    engine.close(timeout=LONG)
    # A thread whose start was interrupted is none that the executor knows: nobody waits for it, and
    # it lets go when its batch is through.
    end = time.monotonic() + LONG
    while backend.closed == 0 and time.monotonic() < end:
        time.sleep(0.001)
    assert backend.closed == 1 and caught.value.__traceback__ is not None


def test_a_kept_error_keeps_nothing_open(tiny) -> None:
    engine = load(tiny)
    (*_, backend) = tiny.backends

    def fail() -> None:
        raise ZeroDivisionError

    backend.before_run = fail
    with pytest.raises(ZeroDivisionError) as caught:
        engine.predict(texts(200))
    engine.close(timeout=LONG)
    assert backend.closed == 1 and caught.value.__traceback__ is not None


def test_two_batches_run_at_once(tiny) -> None:
    engine = load(tiny)
    both = threading.Barrier(2)
    # Of an even number of batches each meets another; the caller's own thread runs the last.
    tiny.backends[-1].before_run = lambda: both.wait(LONG)
    assert len(engine.predict(["a b"] * 66)) == 66  # of four tokens, three a batch
    assert len(tiny.backends[-1].batches) == 22


def test_a_batch_runs_while_the_next_texts_are_tokenized(tiny) -> None:
    engine = load(tiny)
    later = threading.Event()
    predictor = engine._predictor
    requests = predictor.requests

    def watched(items: Any, prompt: str) -> Any:
        if 0 not in items:
            later.set()
        return requests(items, prompt)

    predictor.requests = watched
    tiny.backends[-1].before_run = lambda: later.wait(LONG) or pytest.fail("nothing was tokenized")
    assert len(engine.predict(texts(100))) == 100


def test_no_thread_to_be_had(tiny, monkeypatch) -> None:
    want = shown(load(tiny, at_once=1).predict(texts(100)))

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert shown(load(tiny).predict(texts(100))) == want


def test_the_backend_says_how_many_tokens_suit_it(tiny, monkeypatch) -> None:
    tiny.load()
    kind = type(tiny.backends[-1])
    assert kind.batch_tokens == 4096
    monkeypatch.setattr(kind, "batch_tokens", 8)
    engine = load(tiny, tokens=None, at_once=1)
    assert engine.batch_tokens == 8
    engine.predict(["a b"] * 6)
    assert [batch.tokens for batch in tiny.backends[-1].batches] == [8, 8, 8]
    engine = load(tiny, tokens=4, at_once=1)
    assert engine.batch_tokens == engine.with_settings({}).batch_tokens == 4
    engine.predict(["a b"] * 2)
    assert [batch.tokens for batch in tiny.backends[-1].batches] == [4, 4]


def test_the_scheduler_runs_as_many_at_once(tiny) -> None:
    engine = load(tiny, tokens=4)
    both = threading.Barrier(2)
    tiny.backends[-1].before_run = lambda: both.wait(LONG)
    submissions = [engine.submit("a b") for _ in range(4)]
    assert len([one.result(LONG) for one in submissions]) == 4
    assert engine.statistics().batches == 4
