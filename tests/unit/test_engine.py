"""The engine, with a backend that can be checked by hand."""

from __future__ import annotations

import gc
import io
import os
import pickle
import threading

import numpy as np
import pytest

import bertrt
from bertrt import Batching, Engine
from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    InvalidTypeError,
    MissingFileError,
    OutOfMemoryError,
)
from bertrt.plan.tail import apply_tail

IDS = np.array([[2, 5, 6, 3], [2, 9, 3, 0]])
LENGTHS = np.array([4, 3])


# --- predict ----------------------------------------------------------------------------------


def test_predict(tiny) -> None:
    engine = tiny.load()
    results = engine.predict(["hello worlds", "a"])
    assert [type(result) for result in results] == [bertrt.Embedding] * 2
    # [CLS] hello world ##s [SEP] and [CLS] a [SEP]
    assert results[0].vector.tolist() == [2, 5, 2 + 5 + 6 + 7 + 3, 0]
    assert results[1].vector.tolist() == [2, 3, 2 + 9 + 3, 0]


def test_single_input_gives_the_one_result(tiny) -> None:
    engine = tiny.load()
    assert engine.predict("a").vector.tolist() == [2, 3, 14, 0]
    # [CLS] a [SEP] b [SEP]: a tuple is a pair.
    assert engine.predict(("a", "b")).vector.tolist() == [2, 5, 27, 2]
    assert len(engine.predict(["a", "b"])) == 2
    (pair,) = engine.predict([("a", "b")])
    assert pair.vector.tolist() == [2, 5, 27, 2]
    assert engine.predict(("a", "")).vector.tolist() == [2, 3, 14, 0]


def test_truncated_results_say_so(tiny) -> None:
    engine = tiny.load(max_length=5)
    assert engine.max_length == 5
    short, long = engine.predict(["a a a", "a a a a"])
    assert (short.truncated, long.truncated) == (False, True)
    assert short.vector.tolist() == long.vector.tolist() == [2, 5, 32, 0]


def test_other_tasks(tiny) -> None:
    engine = tiny.load(task="classification", labels=["x", "y"], pooling=None, outputs=["logits"])
    result = engine.predict("a")
    assert (result.label, engine.labels, engine.task) == ("y", ["x", "y"], "classification")
    assert sum(result.scores.values()) == pytest.approx(1)


def test_what_a_program_makes_of_numpys_errors_is_for_its_own_arrays(tiny) -> None:
    engine = tiny.load(task="classification", labels=["x", "y"], pooling=None, outputs=["logits"])
    tiny.backends[-1].run = lambda batch, outputs: {"logits": np.array([[0, 800]], np.float32)}
    with np.errstate(all="raise"):
        assert engine.predict("a").scores == {"y": 1.0, "x": 0.0}
        vanishing = np.array([[0, -200]], np.float32)
        assert apply_tail("softmax", {}, vanishing, np.array([0, 1])).tolist() == [[1, 0]]
        assert set(np.geterr().values()) == {"raise"}


@pytest.mark.parametrize("pads", [False, True])
def test_predict_with_outputs(tiny, pads: bool) -> None:
    tiny.batching = Batching(tokens=8)
    tiny.pads = pads
    texts = ["hello worlds", "a", "a b"]
    pooled = tiny.load()
    results, outputs = pooled.predict_with_outputs(texts)
    assert len(tiny.backends[0].batches) > 1
    for result, own, alone in zip(results, outputs, pooled.predict(texts), strict=True):
        assert result.vector.tolist() == alone.vector.tolist()
        (row,) = own
        assert row.tolist() == result.vector.tolist()
    tokens = tiny.load(pooling={"mode": "cls", "normalize": False})
    _, outputs = tokens.predict_with_outputs(texts)
    assert [[rows[:, 0].tolist() for rows in own] for own in outputs] == [
        [[2, 5, 6, 7, 3]],
        [[2, 9, 3]],
        [[2, 9, 10, 3]],
    ]
    (result,), ((row,),) = pooled.predict_with_outputs("a")
    assert row.tolist() == result.vector.tolist() == [2, 3, 14, 0]


def test_tokenize(tiny) -> None:
    engine = tiny.load()
    one, other = engine.tokenize(["hello", "a b"])
    assert (one.ids.tolist(), other.ids.tolist()) == ([2, 5, 3], [2, 9, 10, 3])
    assert engine.tokenize(("a", "b")).types.tolist() == [0, 0, 0, 1, 1]
    assert not tiny.backends[0].batches


@pytest.mark.parametrize("pads", [False, True])
def test_long_lists_run_in_bounded_chunks(tiny, pads: bool) -> None:
    tiny.batching = Batching(tokens=20)
    tiny.pads = pads
    engine = tiny.load()
    texts = ["a", "a b a b a b"] + ["b"] * 17 + ["hello world"]
    results = engine.predict(texts)
    batches = tiny.backends[0].batches
    assert len(batches) > 1
    assert sum(batch.seqs for batch in batches) == len(texts)
    sizes = [batch.seqs * batch.longest if pads else batch.tokens for batch in batches]
    assert max(sizes) <= 20
    if pads:
        # Like lengths together: less than a third of what runs is padding.
        assert sum(sizes) < 1.5 * sum(batch.tokens for batch in batches)
    # No chunk could have taken the next text as well.
    firsts = [batch.lengths[0] for batch in batches[1:]]
    for batch, first in zip(batches[:-1], firsts, strict=True):
        more = max(batch.longest, first) * (batch.seqs + 1) if pads else batch.tokens + first
        assert more > 20
    whole = [engine.predict(text) for text in texts]
    assert [r.vector.tolist() for r in results] == [r.vector.tolist() for r in whole]


def test_a_text_larger_than_a_chunk_runs_alone(tiny) -> None:
    tiny.batching = Batching(tokens=4)
    engine = tiny.load()
    assert [r.vector[1] for r in engine.predict(["a b a b", "a", "a b a b a"])] == [6, 3, 7]


def test_bad_input_runs_nothing(tiny) -> None:
    engine = tiny.load()
    for batch, error, message in [
        ([], InvalidInputError, "empty"),
        (["a", None], InvalidTypeError, r"batch\[1\]"),
        (["\0", "a", "b\0"], InvalidInputError, r"2 of 3 .*batch\[0\] holds.*batch\[2\] holds"),
        (["a", ("a", "b")], InvalidTypeError, r"batch\[1\]"),
        (np.array(["a"]), InvalidTypeError, "ndarray; expected a list of str"),
        ((text for text in "ab"), InvalidTypeError, "generator"),
        (["a\0"], InvalidInputError, "NUL"),
        (["\ud800"], InvalidInputError, "surrogate"),
    ]:
        for method in (engine.predict, engine.tokenize):
            with pytest.raises(error, match=message):
                method(batch)
    assert not tiny.backends[0].batches


def test_errors_in_their_places(tiny) -> None:
    engine = tiny.load()
    found = engine.predict(["a", "\0", "b", None, "hello worlds"], on_error="return")
    assert [type(item).__name__ for item in found] == [
        *("Embedding", "InvalidInputError", "Embedding", "InvalidTypeError", "Embedding")
    ]
    alone = engine.predict(["a", "b", "hello worlds"])
    for item, result in zip([found[0], found[2], found[4]], alone, strict=True):
        assert item.vector.tobytes() == result.vector.tobytes()
    assert str(found[1]) == "batch[1] holds a NUL character at position 0"
    assert pickle.loads(pickle.dumps(found[3])).args == found[3].args
    # A single input has the one error; a list of bad ones runs nothing.
    assert "NUL" in str(engine.predict("\0", on_error="return"))
    ran = len(tiny.backends[0].batches)
    assert [type(e) for e in engine.predict([None, 3], on_error="return")] == [InvalidTypeError] * 2
    assert len(tiny.backends[0].batches) == ran


@pytest.mark.parametrize(
    ("on_error", "error"),
    [("skip", InvalidInputError), (None, InvalidTypeError), (np.array(["a"]), InvalidTypeError)],
)
def test_on_error_is_checked(tiny, on_error, error) -> None:
    engine = tiny.load()
    with pytest.raises(error, match="on_error"):
        engine.predict("a", on_error=on_error)
    # What is no batch has no places to put errors.
    for batch in ([], None, ("a", "b", "c")):
        with pytest.raises((InvalidInputError, InvalidTypeError)):
            engine.predict(batch, on_error="return")


def test_errors_across_chunks(tiny) -> None:
    tiny.batching = Batching(tokens=6)
    for pads in (False, True):
        tiny.pads = pads
        engine = tiny.load()
        texts = ["hello " * (1 + i % 5) if i % 3 else "\0" for i in range(20)]
        found = engine.predict(texts, on_error="return")
        assert len(tiny.backends[-1].batches) > 3
        for i, (text, item) in enumerate(zip(texts, found, strict=True)):
            if i % 3:
                assert item.vector.tolist() == engine.predict(text).vector.tolist()
            else:
                assert str(item).startswith(f"batch[{i}] holds")


@pytest.mark.parametrize("text", ["", " ", "\t\u200b\x01", "\u0301"])
def test_a_text_without_tokens_is_its_special_tokens(tiny, text: str) -> None:
    """[CLS] [SEP], as transformers has it."""
    engine = tiny.load()
    assert engine.tokenize(text).ids.tolist() == [2, 3]
    assert engine.predict(text).vector.tolist() == [2, 2, 5, 0]
    assert [r.vector[1] for r in engine.predict(["a", text, "b"])] == [3, 2, 3]
    # [CLS] [SEP] b [SEP]; a second text without tokens is none to GluonNLP.
    assert engine.tokenize((text, "b")).ids.tolist() == [2, 3, 10, 3]
    assert engine.tokenize((text, "b")).types.tolist() == [0, 0, 1, 1]
    assert engine.tokenize((text, text)).ids.tolist() == [2, 3]
    words = tiny.load(pooling={"mode": "words", "normalize": True, "subwords": "avg"})
    result = words.predict(text)
    assert result.tokens == () and result.vector.shape == (0, 4)
    classifier = tiny.load(
        task="classification", labels=["x", "y"], pooling=None, outputs=["logits"]
    )
    assert classifier.predict(text).label == "y"


def test_no_tokenizer(tiny) -> None:
    engine = tiny.load(tokenizer=False, task=None)
    with pytest.raises(BertrtError, match="has no tokenizer: use run"):
        engine.predict("a")
    with pytest.raises(BertrtError, match="has no tokenizer"):
        engine.tokenize("a")
    assert engine.task is None and engine.max_length == 12
    assert engine.run(IDS)["pooled_output"].shape == (2, 4)


def test_pairs_need_token_types(tiny) -> None:
    architecture = tiny.settings["architecture"]
    one_type = tiny.load(architecture=architecture | {"type_vocab_size": 1})
    with pytest.raises(InvalidInputError, match="not pairs"):
        one_type.predict(("a", "b"))
    # A model without token types has nothing to tell the texts apart by but [SEP].
    no_types = tiny.load(architecture=architecture | {"type_vocab_size": 0})
    assert no_types.predict(("a", "b")).vector.tolist() == [2, 5, 27, 0]


# --- run --------------------------------------------------------------------------------------


def test_run_padded(tiny) -> None:
    found = tiny.load().run(IDS, np.zeros_like(IDS), LENGTHS)
    assert list(found) == ["sequence_output", "pooled_output"]
    sequence = found["sequence_output"]
    assert sequence.shape == (2, 4, 4) and sequence.dtype == np.float32
    assert sequence[0].tolist() == [[2, 0, 0, 4], [5, 0, 1, 4], [6, 0, 2, 4], [3, 0, 3, 4]]
    assert sequence[1, :3, 0].tolist() == [2, 9, 3]
    assert sequence[1, 3].tolist() == [0, 0, 0, 0]


def test_run_ragged(tiny) -> None:
    engine = tiny.load()
    found = engine.run([np.array([2, 5, 6, 3]), [2, 9, 3], []])
    assert [rows.shape for rows in found["sequence_output"]] == [(4, 4), (3, 4), (0, 4)]
    assert found["sequence_output"][1][:, 0].tolist() == [2, 9, 3]
    assert found["pooled_output"][2].tolist() == [0, 0, 0, 0]
    with pytest.raises(InvalidInputError, match="valid_length goes with a padded array"):
        engine.run([[2, 3]], valid_length=[2])


def test_run_checks_its_input(tiny) -> None:
    engine = tiny.load()
    with pytest.raises(InvalidInputError, match=r"token_ids\[1, 1\] is 11"):
        engine.run(np.array([[1, 2], [3, 11]]))
    with pytest.raises(InvalidInputError, match="positions for 12"):
        engine.run(np.zeros((1, 13), int))
    with pytest.raises(InvalidTypeError):
        engine.run(None)
    assert not tiny.backends[0].batches


def test_masked_positions(tiny) -> None:
    engine = tiny.load(outputs=["pooled_output", "masked_lm_outputs"])
    assert list(engine.run(IDS)) == ["pooled_output"]
    found = engine.run(IDS, valid_length=LENGTHS, masked_positions=[[0, 3], [2, 2]])
    assert found["masked_lm_outputs"].tolist() == [[0, 3], [2, 2]]
    with pytest.raises(InvalidInputError, match=r"masked_positions\[1, 0\] is 3"):
        engine.run(IDS, valid_length=LENGTHS, masked_positions=[[0], [3]])
    plain = tiny.load(outputs=["pooled_output"])
    with pytest.raises(InvalidInputError, match="no masked language model decoder"):
        plain.run(IDS, masked_positions=[[0], [0]])
    only = tiny.load(outputs=["masked_lm_outputs"], task=None, tokenizer=False)
    with pytest.raises(InvalidInputError, match="all that the model gives"):
        only.run(IDS)


# --- what it says of itself -------------------------------------------------------------------


def test_properties(tiny) -> None:
    engine = tiny.load(threads=3)
    assert (engine.backend, engine.device, engine.precision, engine.threads) == (
        "tiny",
        "cpu",
        "fp32",
        3,
    )
    assert engine.task == "embedding" and engine.labels is None and engine.max_length == 8
    text = engine.explain()
    assert "tiny (numpy)" in text and "threads    3" in text and text.endswith("embed  numpy")
    assert "/models/tiny" in repr(engine)


def test_threads_default_to_the_usable_cores(tiny, monkeypatch) -> None:
    monkeypatch.setattr("bertrt.engine.engine.usable_cores", lambda: 5)
    assert tiny.load(threads=None).threads == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backend": "tensorflow"}, InvalidInputError, "'tensorflow' does not exist; .*native"),
        ({"backend": None}, InvalidTypeError, "backend is a NoneType"),
        ({"device": "gpu"}, InvalidInputError, "'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:"}, InvalidInputError, "device"),
        ({"device": 0}, InvalidTypeError, "device"),
        ({"precision": "fp64"}, InvalidInputError, "fp32, bf16, fp16, int8"),
        ({"threads": 0}, InvalidInputError, "threads is 0"),
        ({"threads": -1}, InvalidInputError, "threads"),
        ({"threads": 2.0}, InvalidTypeError, "threads is a float"),
        ({"threads": True}, InvalidTypeError, "threads"),
        ({"threads": np.array([1, 2])}, InvalidTypeError, "threads is a ndarray"),
        ({"threads": 10**12}, InvalidInputError, "threads is 1000000000000; expected 1 to 1024"),
    ],
)
def test_bad_load_arguments(tiny, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Engine.load("/models/tiny", **({"backend": "tiny"} | arguments))


def test_arguments_in_the_order_that_is_documented(tiny) -> None:
    engine = Engine.load("/models/tiny", "tiny", "cpu", "fp32", np.int64(3))
    assert (engine.backend, engine.threads) == ("tiny", 3)


def test_missing_path(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Engine.load(tmp_path / "nothing")
    assert isinstance(caught.value, MissingFileError)


# --- its life ---------------------------------------------------------------------------------


def test_closed(tiny) -> None:
    with tiny.load() as engine:
        engine.predict("a")
    (backend,) = tiny.backends
    assert backend.closed == 1
    engine.close()
    assert backend.closed == 1
    for use in (
        lambda: engine.predict("a"),
        lambda: engine.run(IDS),
        lambda: engine.tokenize("a"),
        lambda: engine.threads,
        lambda: pickle.dumps(engine),
    ):
        with pytest.raises(BertrtError, match="closed"):
            use()
    assert "closed" in repr(engine)


def test_close_waits_for_runs(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(30)
        assert not backend.closed

    backend.before_run = hold
    found: list[object] = []
    run = threading.Thread(target=lambda: found.append(engine.run(IDS)))
    run.start()
    assert started.wait(30)
    close = threading.Thread(target=engine.close)
    close.start()
    # Nothing new may start as soon as closing has begun.
    while not engine._life.closed:
        pass
    with pytest.raises(BertrtError, match="closed"):
        engine.run(IDS)
    go_on.set()
    run.join(30)
    close.join(30)
    assert len(found) == 1 and backend.closed == 1


def test_an_error_in_a_run_leaves_the_engine_usable(tiny) -> None:
    engine = tiny.load()
    (backend,) = tiny.backends

    def fail() -> None:
        raise RuntimeError("out of order")

    backend.before_run = fail
    with pytest.raises(RuntimeError, match="out of order"):
        engine.predict("a")
    backend.before_run = lambda: None
    assert engine.predict("a").vector[1] == 3
    engine.close()
    assert backend.closed == 1


def test_shared_by_threads(tiny) -> None:
    engine = tiny.load()
    texts = ["a", "a b", "hello worlds", "b b b"]
    expected = [result.vector.tolist() for result in engine.predict(texts)]
    barrier = threading.Barrier(8)
    found: list[list] = []

    def work() -> None:
        barrier.wait(30)
        for _ in range(20):
            found.append([result.vector.tolist() for result in engine.predict(texts)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 160


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("2 bytes"), OutOfMemoryError("ours")])
def test_memory_that_is_short_outside_the_backend(tiny, monkeypatch, error: Exception) -> None:
    engine = tiny.load()

    def short(*_: object, **__: object) -> None:
        raise error

    calls = {
        "run": ("bertrt.engine.engine.unpack", lambda: engine.run(IDS)),
        "predict": ("bertrt.engine.predictor.Predictor.results", lambda: engine.predict("a")),
        "predict_with_outputs": (
            "bertrt.engine.predictor.Predictor.results",
            lambda: engine.predict_with_outputs("a"),
        ),
        "load": ("bertrt.engine.engine.load_backend", tiny.load),
    }
    for name, (place, call) in calls.items():
        with monkeypatch.context() as patch, pytest.raises(OutOfMemoryError) as caught:
            patch.setattr(place, short)
            call()
        own = f"does not suffice for Engine.{name}{f': {error}' if str(error) else ''};"
        assert str(caught.value) == "ours" or own in str(caught.value)
        call()  # the engine lives on


def test_pickle(tiny) -> None:
    engine = tiny.load(threads=3)
    copy = pickle.loads(pickle.dumps(engine))
    assert len(tiny.backends) == 2
    assert (copy.threads, copy.backend, repr(copy)) == (3, "tiny", repr(engine))
    assert copy.predict("a").vector.tolist() == engine.predict("a").vector.tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("survives", [False, True])
def test_fork(tiny, survives: bool) -> None:
    """A child can use the engine, and loads the backend again if it must; the parent goes on."""
    engine = tiny.load()
    tiny.backends[0].survives_fork = survives
    expected = engine.predict("a").vector.tolist()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"no"
        try:
            same = engine.predict("a").vector.tolist() == expected
            new = len(tiny.backends) == (1 if survives else 2)
            new = new and tiny.backends[0].closed == 0
            answer = b"ok" if same and new else b"bad"
        finally:
            os.write(write_end, answer)
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"ok"
    os.waitpid(child, 0)
    assert engine.predict("a").vector.tolist() == expected
    assert len(tiny.backends) == 1


def test_engines_are_collected(tiny) -> None:
    from bertrt.engine.life import _lives

    gc.collect()  # what other tests left
    count = len(_lives)
    engine = tiny.load()
    engine.predict("a")
    (backend,) = tiny.backends
    assert len(_lives) == count + 1 and not backend.closed
    del engine
    # At once: nothing refers to itself.
    assert len(_lives) == count and backend.closed == 1


# --- progress ---------------------------------------------------------------------------------


class Terminal:
    """A stderr that says it is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("tty", "delay", "shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_progress(tiny, monkeypatch, tty: bool, delay: float, shown: bool) -> None:
    """A bar for a person who waits long; silence for a file, and for quick runs."""
    terminal = Terminal(tty)
    tiny.batching = Batching(tokens=4)
    monkeypatch.setattr("bertrt.host.progress._DELAY", delay)
    monkeypatch.setattr("sys.stderr", terminal)
    engine = tiny.load()
    engine.predict(["a"] * 50)
    assert ("predict" in terminal.text) == shown


@pytest.mark.parametrize("stderr", ["none", "closed", "plain"])
def test_a_process_without_a_terminal(tiny, monkeypatch, stderr: str) -> None:
    """A daemon has no standard error, or a closed one, or an object that only writes."""
    closed = io.StringIO()
    closed.close()
    tiny.batching = Batching(tokens=4)
    monkeypatch.setattr("sys.stderr", {"none": None, "closed": closed, "plain": object()}[stderr])
    assert len(tiny.load().predict(["a", "b"])) == 2
