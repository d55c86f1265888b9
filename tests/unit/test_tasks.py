"""Post-processing against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertrt.batch import PackedBatch
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.results import Classification, Embedding, Regression
from bertrt.settings import TASKS, complete_settings
from bertrt.tasks import Request, make_task
from bertrt.tokenizer import Encoding

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
