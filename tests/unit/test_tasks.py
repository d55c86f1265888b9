"""Post-processing against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertrt.batch import PackedBatch
from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.results import Classification, Embedding, NextSentence, Regression
from bertrt.tasks.base import Request
from bertrt.tasks.settings import (
    PRESETS,
    TASKS,
    check_settings,
    complete_pooling,
    complete_settings,
)
from bertrt.tasks.table import make_task
from bertrt.text.encoding import Encoding

ROWS = {"sequence_output": "tokens", "pooled_output": "seqs", "logits": "seqs"}


def batch_of(*lengths: int) -> PackedBatch:
    arrays = [np.ones(length, np.int32) for length in lengths]
    return PackedBatch.from_sequences(arrays, arrays)


def make(task: str, labels=None, pooling=None, rows=ROWS, **settings):
    made = complete_settings(settings, task, 128) if task in TASKS else settings
    return make_task(task, labels=labels, pooling=pooling, settings=made, rows=rows)


def requests(*truncated: bool) -> list[Request]:
    return [Request([Encoding(np.zeros(0), np.zeros(0), cut)], cut) for cut in truncated]


def test_classification() -> None:
    task = make("classification", labels=["no", "yes"])
    logits = np.array([[0.0, math.log(3)], [2.0, 2.0]], np.float32)
    one, tie = task.read({"logits": logits}, batch_of(3, 4), requests(False, True))
    assert isinstance(one, Classification)
    assert one.label == "yes" and one.score == one.scores["yes"]
    assert one.scores == pytest.approx({"no": 0.25, "yes": 0.75}, rel=1e-6)
    assert not one.truncated and tie.truncated
    assert tie == Classification("no", 0.5, {"no": 0.5, "yes": 0.5}, True)


def test_classification_of_large_logits() -> None:
    task = make("classification")
    (result,) = task.read(
        {"logits": np.array([[3e4, -3e4]], np.float32)}, batch_of(2), requests(False)
    )
    assert result == Classification("0", 1.0, {"0": 1.0, "1": 0.0})
    assert type(result.score) is float


def test_labels_must_match() -> None:
    task = make("classification", labels=["a", "b", "c"])
    with pytest.raises(ModelFormatError, match="2 classes and 3 labels"):
        task.read({"logits": np.zeros((1, 2), np.float32)}, batch_of(2), requests(False))


def test_regression() -> None:
    task = make("regression")
    found = task.read(
        {"logits": np.array([[1.5], [-2.0]], np.float32)}, batch_of(1, 2), requests(True, False)
    )
    assert found == [Regression(1.5, True), Regression(-2.0)]
    with pytest.raises(ModelFormatError, match="not 2"):
        task.read({"logits": np.zeros((1, 2), np.float32)}, batch_of(1), requests(False))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "pooled"])
def test_embedding(mode: str, normalize: bool, rng: np.random.Generator) -> None:
    batch = batch_of(3, 1, 5)
    rows = rng.standard_normal((9, 8)).astype(np.float32)
    pooled = rng.standard_normal((3, 8)).astype(np.float32)
    task = make("embedding", pooling={"mode": mode, "normalize": normalize})
    values = {"sequence_output": rows, "pooled_output": pooled}
    found = task.read(
        {task.outputs[0]: values[task.outputs[0]]}, batch, requests(False, True, False)
    )
    parts = [rows[:3], rows[3:4], rows[4:]]
    expected = {
        "mean": [part.astype(np.float64).mean(axis=0) for part in parts],
        "cls": [part[0] for part in parts],
        "pooled": list(pooled),
    }[mode]
    for result, vector in zip(found, expected, strict=True):
        assert isinstance(result, Embedding) and result.vector.dtype == np.float32
        if normalize:
            vector = vector / max(np.linalg.norm(vector), 1e-12)
        np.testing.assert_allclose(result.vector, vector, rtol=0, atol=1e-6)
    assert [result.truncated for result in found] == [False, True, False]
    # The results do not keep the batch's arrays alive, nor change them.
    assert all(result.vector.base is None for result in found)
    assert not np.shares_memory(found[0].vector, pooled)


def test_zero_vector_stays_zero() -> None:
    task = make("embedding", pooling={"mode": "mean", "normalize": True})
    (result,) = task.read(
        {"sequence_output": np.zeros((2, 4), np.float32)}, batch_of(2), requests(False)
    )
    assert result.vector.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("hidden", [1, 7, 384])
def test_embedding_bits_do_not_depend_on_the_batch(hidden: int, rng: np.random.Generator) -> None:
    task = make("embedding", pooling={"mode": "mean", "normalize": True})
    lengths = [1, 17, 2, 64, 33]
    rows = rng.standard_normal((sum(lengths), hidden)).astype(np.float32)
    together = task.read({"sequence_output": rows}, batch_of(*lengths), requests(*[False] * 5))
    start = 0
    for length, result in zip(lengths, together, strict=True):
        own = rows[start : start + length].copy()
        (alone,) = task.read({"sequence_output": own}, batch_of(length), requests(False))
        assert alone.vector.tobytes() == result.vector.tobytes()
        start += length


@pytest.mark.parametrize(
    ("subwords", "normalize", "expected"),
    [
        # [CLS] hello world ##s ! [SEP]: the third word is made of rows 2 and 3
        ("avg", False, [[5, 0, 1, 6], [6.5, 0, 2.5, 6], [8, 0, 4, 6]]),
        ("sum", False, [[5, 0, 1, 6], [13, 0, 5, 12], [8, 0, 4, 6]]),
        ("last", False, [[5, 0, 1, 6], [7, 0, 3, 6], [8, 0, 4, 6]]),
        ("last", True, [[5, 0, 1, 6], [7, 0, 3, 6], [8, 0, 4, 6]]),
    ],
)
def test_words(tiny, subwords: str, normalize: bool, expected) -> None:
    pooling = {"mode": "words", "normalize": normalize, "subwords": subwords}
    engine = tiny.load(pooling=pooling)
    result = engine.predict("hello worlds!")
    assert result.tokens == ("hello", "worlds", "!")
    expected = np.array(expected, np.float32)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(result.vector, expected, rtol=1e-6)
    # The special tokens between the texts of a pair are nobody's.
    assert engine.predict(("a worlds", "b")).tokens == ("a", "worlds", "b")


def test_tokens(tiny) -> None:
    engine = tiny.load(pooling={"mode": "tokens", "normalize": False})
    result = engine.predict("hello worlds")
    assert result.tokens == ("hello", "world", "##s")
    assert result.vector[:, 0].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("pair", "good", "bad"), [(True, ("a", "b"), "a"), (False, "a", ("a", "b"))]
)
def test_a_task_on_pairs_takes_pairs(tiny, pair: bool, good, bad) -> None:
    engine = tiny.load(
        task="classification",
        labels=["x", "y"],
        pooling=None,
        outputs=["logits"],
        settings={"pair": pair},
    )
    assert engine.predict(good).label in "xy"
    with pytest.raises(InvalidInputError, match="this classifier takes a"):
        engine.predict(bad)


@pytest.fixture
def filler(tiny):
    """A tiny model whose logits are, at each mask, 0 but for 3 at the masked position's number, 2
    at [PAD] and at [UNK], and 4 at an id that is no token's."""
    engine = tiny.load(
        task="fill-mask",
        pooling=None,
        outputs=["masked_lm_outputs"],
        settings={"top_k": 3},
        max_length=12,
    )
    backend = tiny.backends[0]

    def run(batch, outputs):
        backend.batches.append(batch)
        assert outputs == ("masked_lm_outputs",)
        logits = np.zeros((*batch.masked_positions.shape, 13), np.float32)
        logits[..., [0, 1]], logits[..., 12] = 2, 4
        np.put_along_axis(logits, batch.masked_positions[..., None], 3, axis=-1)
        return {"masked_lm_outputs": logits}

    backend.run = run
    return engine


def test_masks(filler, tiny) -> None:
    one, two, again = filler.predict(["hello [MASK] b", "a[MASK] [MASK]s", "[MASK]"])
    powers = np.exp([3, 2, 2])
    total = powers.sum() + math.exp(4) + 9
    assert [(c.token, c.mask) for c in one.candidates] == [
        ("[CLS]", 0),  # id 2, the masked position
        ("[PAD]", 0),
        ("[UNK]", 0),
    ]
    np.testing.assert_allclose([c.score for c in one.candidates], powers / total, rtol=1e-6)
    assert [(c.token, c.mask) for c in two.candidates] == [
        *(("[CLS]", 0), ("[PAD]", 0), ("[UNK]", 0)),
        *(("[SEP]", 1), ("[PAD]", 1), ("[UNK]", 1)),
    ]
    assert again.candidates[0].token == "[UNK]"
    # Texts with as many masks run together: the decoder is asked for nothing else.
    assert [batch.masked_positions.tolist() for batch in tiny.backends[0].batches] == [
        [[2], [1]],
        [[2, 3]],
    ]
    assert filler.predict(("a [MASK]", "b [MASK]")).candidates[3].mask == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b", r"batch\[0\] holds no \[MASK\] to fill"),
        ("a [mask]", r"holds no \[MASK\]"),
        ("a " * 12 + "[MASK]", r"longer than 12 tokens, and only 0 of its 1 \[MASK\]"),
    ],
)
def test_texts_without_masks(filler, tiny, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        filler.predict(text)
    assert not tiny.backends[0].batches


def test_next_sentence(tiny) -> None:
    engine = tiny.load(
        task="next-sentence", pooling=None, outputs=["next_sentence_classifier_output"]
    )
    # The logits are the number of tokens and the sum of the ids: 5 and 27.
    assert engine.predict(("a", "b")) == NextSentence(False, pytest.approx(math.exp(5 - 27)))
    for bad, message in (("a", "takes a pair"), (("a", " "), "the second text is empty")):
        with pytest.raises(InvalidInputError, match=message):
            engine.predict(bad)


def test_results_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Regression(1.0).score = 2.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "translation"}, UnsupportedModelError, "'translation'"),
        (
            {"task": "classification", "rows": {"pooled_output": "seqs"}},
            ModelFormatError,
            "needs the output logits",
        ),
        ({"task": "tagging"}, ModelFormatError, "a row for each token; .* for each sequence"),
        (
            {"task": "regression", "rows": {"logits": "tokens"}},
            ModelFormatError,
            "a row for each sequence",
        ),
        ({"task": "embedding"}, ModelFormatError, "pooling"),
        (
            {"task": "embedding", "pooling": {"mode": "max", "normalize": True}},
            ModelFormatError,
            "max",
        ),
        (
            {"task": "embedding", "pooling": {"mode": "mean", "normalize": "no"}},
            ModelFormatError,
            "normalize",
        ),
        (
            {
                "task": "embedding",
                "pooling": {"mode": "pooled", "normalize": True},
                "rows": {"sequence_output": "tokens"},
            },
            ModelFormatError,
            "pooled_output",
        ),
    ],
)
def test_models_that_do_not_fit(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("activation", "score", "scores"),
    [
        ("softmax", 0.70538451, {"a": 0.70538451, "b": 0.25949646}),
        ("sigmoid", 0.88079708, {"a": 0.88079708, "b": 0.73105858}),
        ("none", 2.0, {"a": 2.0, "b": 1.0}),
    ],
)
def test_scores_of_a_classifier(activation, score, scores) -> None:
    """Of three outputs, two of which have one name."""
    task = make("classification", labels=["b", "a", "b"], activation=activation)
    logits = np.array([[1, 2, -1]], np.float32)
    (result,) = task.read({"logits": logits}, None, [Request([], False)])
    assert (result.label, result.score) == ("a", pytest.approx(score))
    assert result.scores == pytest.approx(scores)


def test_far_logits_have_scores() -> None:
    task = make("classification", labels=["a", "b"], activation="sigmoid")
    logits = np.array([[-1000, 1000]], np.float32)
    (result,) = task.read({"logits": logits}, None, [Request([], False)])
    assert result.scores == {"a": 0.0, "b": 1.0}


def test_bundles_of_before_a_setting_mean_the_default() -> None:
    check_settings({"pair": None}, "classification", "a bundle")
    task = make_task(
        "classification", labels=["a", "b"], pooling=None, settings={"pair": None}, rows=ROWS
    )
    logits = np.array([[0, 0]], np.float32)
    assert task.read({"logits": logits}, None, [Request([], False)])[0].score == 0.5
    with pytest.raises(ModelFormatError, match="'activation' should be one of softmax, sigmoid"):
        check_settings({"pair": None, "activation": "tanh"}, "classification", "a bundle")


def test_settings_have_defaults() -> None:
    assert complete_settings(None, "fill-mask", 128) == {"top_k": 5}
    assert complete_settings({"n_best": 3}, "question-answering", 384) == {
        "max_query_length": 64,
        "doc_stride": 128,
        "n_best": 3,
        "max_answer_length": 30,
        "null_answer": False,
        "null_threshold": 0.0,
    }
    # Where 64 tokens of a question leave no room for a context, it has half of the room.
    assert complete_settings({}, "question-answering", 67)["max_query_length"] == 32
    assert complete_settings({}, "question-answering", 68)["max_query_length"] == 64
    assert complete_pooling(None) == {"mode": "mean", "normalize": False}
    assert complete_pooling({"mode": "words"}) == {
        "mode": "words",
        "normalize": False,
        "subwords": "avg",
    }


@pytest.mark.parametrize(
    ("task", "given", "error", "message"),
    [
        ("fill-mask", {"k": 3}, InvalidInputError, "there is no 'k'; there is top_k"),
        ("tagging", {"k": 3}, InvalidInputError, "nothing to set"),
        ("fill-mask", {"top_k": 0}, InvalidInputError, "top_k should be a whole number from 1"),
        ("fill-mask", {"top_k": True}, InvalidInputError, "found True"),
        ("fill-mask", [3], InvalidTypeError, "a dict of names and values"),
        ("classification", {"pair": 1}, InvalidInputError, "true .* false .* or null"),
        ("question-answering", {"null_threshold": float("nan")}, InvalidInputError, "a number"),
        (
            "question-answering",
            {"max_query_length": 125},
            InvalidInputError,
            "room for less than 125 of a question",
        ),
    ],
)
def test_settings_that_mean_nothing(task: str, given, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        complete_settings(given, task, 128)


@pytest.mark.mxnet
def test_presets_are_those_of_gluonnlp() -> None:
    from gluonnlp.data import classification

    for name, preset in PRESETS.items():
        task = getattr(classification, f"{name.replace('-', '')}Task")()
        labels = None if preset.labels is None else list(preset.labels)
        assert (labels, preset.pair) == (task.class_labels, task.is_pair), name
        assert preset.task == ("regression" if labels is None else "classification")
