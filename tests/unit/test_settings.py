"""Settings of the user's own, for every task: `Engine.load(settings=...)`."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from bertrt import Engine
from bertrt.errors import BertrtError, InvalidInputError
from bertrt.models.model import Model
from bertrt.models.settings import shown_settings
from bertrt.tasks.settings import SETTINGS

TASKS = {
    "classification": {"outputs": ["logits"], "labels": ["no", "yes"]},
    "regression": {"outputs": ["logits"]},
    "embedding": {"pooling": {"mode": "mean", "normalize": False}},
    "question-answering": {
        "outputs": ["logits"],
        "rows": {"logits": "tokens"},
        "settings": {"max_query_length": 4},
    },
    "tagging": {
        "outputs": ["logits"],
        "labels": ["O", "B-X", "I-X", "B-Y"],
        "rows": {"logits": "tokens"},
    },
    "fill-mask": {"outputs": ["masked_lm_outputs"]},
    "next-sentence": {"outputs": ["next_sentence_classifier_output"]},
}


@pytest.fixture
def load(tiny):
    """A function: task, settings -> an engine for the task with settings of the user's own."""

    def load(task: str, settings, /, **changes) -> Engine:
        usual = {"task": task, "labels": None, "pooling": None, "rows": {}, "settings": {}}
        tiny.settings |= usual | {"max_length": 12} | TASKS[task] | changes
        return Engine.load("/models/tiny", backend="tiny", threads=1, settings=settings)

    return load


@pytest.mark.parametrize("task", SETTINGS)
def test_what_is_shown_can_be_set(load, task: str) -> None:
    with load(task, None) as engine:
        shown = shown_settings(engine._model)
        assert SETTINGS[task].keys() | {"max_length"} <= shown.keys()
    with load(task, shown) as engine:
        assert shown_settings(engine._model) == shown
        line = engine.explain().split("\n")[2]
        assert line.startswith("settings   ") and "max_length=12" in line
        assert [part.partition("=")[0] for part in line.split() if "=" in part] == list(shown)


@pytest.mark.parametrize("task", SETTINGS)
def test_an_unknown_setting(load, task: str) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"{task}: there is no 'size'; there is .*max_leng"
    ):
        load(task, {"size": 3})


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("question-answering", {"doc_stride": 0}, "doc_stride should be a whole number from 1"),
        ("question-answering", {"null_answer": 1}, "null_answer should be true or false"),
        ("question-answering", {"n_best": "3"}, "n_best should be a whole number"),
        ("question-answering", {"max_length": 10, "max_query_length": 8}, "room for less than 7"),
        ("fill-mask", {"top_k": 0}, "top_k should be a whole number from 1, found 0"),
        ("fill-mask", {"max_length": 41}, "from 3 to the model's 12 positions, found 41"),
        ("tagging", {"labels": ["O"]}, "labels should be 4 different names"),
        ("regression", {"pair": "yes"}, "pair should be true"),
    ],
)
def test_values_out_of_range(load, task: str, settings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load(task, settings)


def test_settings_are_used(load) -> None:
    with load("fill-mask", {"top_k": 2}) as engine:
        assert len(engine.predict("a [MASK]").candidates) == 2
    with load("question-answering", {"doc_stride": 2, "n_best": 3, "null_answer": True}) as engine:
        assert len(engine.tokenize(("a", "b " * 12))) > 1
        answer = engine.predict(("a", "b " * 12))
        assert len(answer.nbest) <= 4 and "" in [span.text for span in answer.nbest]
    engine = load("regression", {"pair": True})
    with engine, pytest.raises(InvalidInputError, match="takes a pair"):
        engine.predict("a")
    with load("tagging", {"labels": ["p", "q", "r", "s"]}) as engine:
        assert set(engine.predict("a b").tags) <= set("pqrs")
        assert engine.labels == ["p", "q", "r", "s"]


def test_a_shorter_question_for_a_shorter_sequence(load) -> None:
    """As where a bundle is made: half of the room, unless the user says it."""
    with load("question-answering", {"max_length": 7}) as engine:
        assert "max_query_length=2" in engine.explain()
    with load("question-answering", {"max_length": 7, "max_query_length": 3}) as engine:
        assert "max_query_length=3" in engine.explain()


def test_an_activation_of_what_gives_probabilities(load) -> None:
    with pytest.raises(InvalidInputError, match="activation is sigmoid, and the model gives prob"):
        load("classification", {"activation": "sigmoid"}, outputs=["probabilities"])


def test_a_pooling_that_the_model_cannot_have(load) -> None:
    with pytest.raises(InvalidInputError, match="needs the output pooled_output"):
        load("embedding", {"pooling": "pooled"}, outputs=["sequence_output"])


def test_a_bare_graph_has_no_settings(tmp_path: Path, load) -> None:
    with pytest.raises(InvalidInputError, match="top_k cannot be set: a bare graph has no task"):
        load("fill-mask", {"top_k": 3}, task=None)


def test_a_model_without_a_tokenizer(load) -> None:
    with load("fill-mask", {"top_k": 3}, tokenizer=False) as engine:
        assert "max_length" not in shown_settings(engine._model)
    with pytest.raises(InvalidInputError, match="no 'max_length'; there is top_k"):
        load("fill-mask", {"max_length": 9}, tokenizer=False)


def test_nothing_to_set(load) -> None:
    with load("next-sentence", {}) as engine:
        assert isinstance(engine._model, Model)


def test_other_settings_of_an_engine(load) -> None:
    """The same weights and life; each answers by its own settings, also through the scheduler."""
    engine = load("embedding", {"normalize": True})
    other = engine.with_settings({"normalize": False, "truncate_dim": 2})
    (unit, plain) = (one.predict("a").vector for one in (engine, other))
    assert len(plain) == 2 and abs(float((unit * unit).sum()) - 1) < 1e-6
    assert float((plain * plain).sum()) > 2
    assert other.submit("a").result().vector.tolist() == plain.tolist()
    assert engine.submit("a").result().vector.tolist() == unit.tolist()
    assert (engine.settings["normalize"], other.settings["normalize"]) == (True, False)
    assert other.settings["max_length"] == engine.settings["max_length"] == 12
    assert other.tokenizer is engine.tokenizer
    with pickle.loads(pickle.dumps(other)) as again:
        assert again.settings == other.settings
    with pytest.raises(InvalidInputError, match="no 'top_k'"):
        engine.with_settings({"top_k": 3})
    with pytest.raises(InvalidInputError, match="max_length belongs to the tokenizer"):
        engine.with_settings({"max_length": 5})
    other.close()
    with pytest.raises(BertrtError, match="closed"):
        engine.predict("a")


def test_what_is_set_is_a_copy(load) -> None:
    with load("classification", None) as engine:
        engine.settings["labels"].clear()
        assert engine.labels == ["no", "yes"]
        assert engine.settings["activation"] == "softmax"
