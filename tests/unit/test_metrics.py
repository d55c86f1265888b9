"""Metrics: against values counted by hand, and the rules of SQuAD against its script's facts."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from bertrt.errors import InvalidInputError, MissingDependencyError
from bertrt.evaluation.examples import Examples, GoldAnswer
from bertrt.evaluation.metrics import METRICS, exact_match, is_right, metrics_of, score, token_f1
from bertrt.evaluation.run import run_examples

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("seqeval")


def test_accuracy_and_f1_of_mrpc() -> None:
    gold, found = list("1101010"), list("1110010")
    # Three right "1", one "1" too many, one too few
    points = score(metrics_of("MRPC"), gold, found, ["0", "1"])
    assert points == {
        "accuracy": pytest.approx(500 / 7),
        "f1": pytest.approx(100 * 2 * 3 / (2 * 3 + 1 + 1)),
    }
    # Of the other label
    points = score(["f1"], gold, found, ["1", "0"])
    assert points == {"f1": pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))}
    assert score(["f1"], ["1", "0"], ["0", "0"], ["0", "1"]) == {"f1": 0.0}


def test_macro_f1() -> None:
    points = score(metrics_of("classification"), list("aabbc"), list("abbbc"))
    assert points["accuracy"] == pytest.approx(80)
    assert points["macro_f1"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3)


def test_matthews_of_cola() -> None:
    # 3 true positives, 1 false, 2 true negatives, 1 false
    points = score(metrics_of("CoLA"), list("1111000"), list("1110100"))
    assert points == {"matthews": pytest.approx(100 * (3 * 2 - 1 * 1) / math.sqrt(4 * 4 * 3 * 3))}
    assert score(["matthews"], list("10"), list("11")) == {"matthews": 0.0}


def test_correlations_of_stsb() -> None:
    points = score(metrics_of("STS-B"), [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0])
    assert points["spearman"] == pytest.approx(100)
    assert points["pearson"] == pytest.approx(100 * 25 / math.sqrt(5 * 129))
    assert score(["pearson"], [1.0, 2.0], [5.0, 3.0]) == {"pearson": pytest.approx(-100)}
    for found in ([2.0, 2.0], [1.0, 1.0]):
        points = score(["pearson", "spearman"], [1.0, 2.0], found)
        assert all(math.isnan(value) for value in points.values())


def answers(*texts: str) -> tuple[GoldAnswer, ...]:
    return tuple(GoldAnswer(text, 0) for text in texts)


@pytest.mark.parametrize(
    ("gold", "found", "exact", "f1"),
    [
        (("Denver Broncos",), "the Denver  broncos!", True, 1),
        (("Denver Broncos",), "Broncos", False, 2 / 3),
        (("one", "Denver Broncos won"), "Broncos", False, 1 / 2),
        (("a b b",), "b b b", False, 4 / 5),
        # Punctuation goes before words are told apart, and only that of ASCII.
        (("A.B.C.",), "abc", True, 1),
        (("24\u201310",), "24-10", False, 0),
        (("theatre",), "the theatre", True, 1),
        (("none",), "some", False, 0),
        # No answer
        ((), "", True, 1),
        ((), "some", False, 0),
        ((), "the", True, 1),
        (("some",), "", False, 0),
        # An answer of which nothing is left is none.
        (("The", "x"), "", False, 0),
        (("The",), "a", True, 1),
    ],
)
def test_answers_of_squad(gold, found, exact, f1) -> None:
    assert exact_match(answers(*gold), found) is exact
    assert token_f1(answers(*gold), found) == pytest.approx(f1)
    assert is_right("question-answering", answers(*gold), found) is exact
    points = score(metrics_of("question-answering"), [answers(*gold)] * 2, [found, "qqq"])
    assert points["token_f1"] == pytest.approx(50 * f1)
    assert points["exact_match"] == 50 * exact


def test_entities() -> None:
    gold = [["B-PER", "E-PER", "O", "S-LOC"], ["S-ORG"], ["O"]]
    # A right one in another scheme, one cut short, one of the wrong kind; X is none
    found = [["B-PER", "I-PER", "O", "S-LOC"], ["S-LOC"], ["X"]]
    points = score(metrics_of("tagging"), gold, found)
    assert points == {
        name: pytest.approx(200 / 3) for name in ("entity_f1", "entity_precision", "entity_recall")
    }
    assert [is_right("tagging", *own) for own in zip(gold, found, strict=True)] == [
        True,
        False,
        True,
    ]
    assert score(["entity_f1"], [["O"]], [["S-PER"]]) == {"entity_f1": 0.0}


def test_what_is_right() -> None:
    assert is_right("classification", "1", "1") is True
    assert is_right("classification", "1", "0") is False
    assert is_right("regression", 1.0, 1.0) is None


def test_every_metric_is_perfect_on_the_truth() -> None:
    truths = {
        "question-answering": [answers("a b"), ()],
        "tagging": [["S-A", "O"], ["B-A", "E-B"]],
        "regression": [1.0, 2.5],
        "classification": ["0", "1"],
    }
    seen: set[str] = set()
    for task, gold in truths.items():
        found = ["A B", ""] if task == "question-answering" else gold
        names = metrics_of(task) + (("f1", "matthews") if task == "classification" else ())
        points = score(names, gold, found, ["0", "1"])
        assert points == {name: pytest.approx(100) for name in names}
        seen |= set(names)
    assert seen == METRICS.keys()


def test_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 predictions are scored with 2 examples"):
        score(["accuracy"], ["0", "1"], ["0"])
    with pytest.raises(InvalidInputError, match="0 predictions"):
        score(["accuracy"], [], [])
    with pytest.raises(InvalidInputError, match="there is no metric 'bleu'; there is accuracy"):
        score(["bleu"], ["0"], ["0"])
    with pytest.raises(InvalidInputError, match="f1 is for two labels"):
        score(["f1"], ["0"], ["0"], ["0", "1", "2"])
    with pytest.raises(InvalidInputError, match="task 'embedding' has no metric"):
        metrics_of("embedding")


def test_a_library_that_is_missing(monkeypatch) -> None:
    for name in ("sklearn.metrics", "scipy.stats", "seqeval.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, gold in (("accuracy", ["0"]), ("pearson", [1.0]), ("entity_f1", [["O"]])):
        with pytest.raises(MissingDependencyError, match=r"pip install 'bertrt\[evaluate\]'"):
            score([name], gold, gold)
    # SQuAD's are ours.
    assert score(["exact_match"], [()], [""]) == {"exact_match": 100.0}


def test_examples_that_cannot_be_answered_have_their_places(tiny) -> None:
    engine = tiny.load(
        task="tagging",
        labels=["O", "B-a", "I-a", "E-a"],
        pooling=None,
        outputs=["logits"],
        rows={"logits": "tokens"},
    )
    texts = [["a"], ["a"] * 7, ["b"], ["a"] * 9]
    places = [f"line {i}" for i in (1, 3, 11, 14)]
    examples = Examples("tagging", Path("words.txt"), "", texts, [["O"]] * 4, places, 0)
    with pytest.raises(InvalidInputError) as caught:
        run_examples(engine, examples)
    message = str(caught.value)
    assert message.startswith(
        "words.txt: 2 of 4 inputs cannot be answered: words.txt, line 3 has 7"
    )
    assert "; words.txt, line 14 has 9 tokens" in message and "batch" not in message
    with pytest.raises(InvalidInputError, match=r"^words.txt, line 3: has 7 tokens"):
        run_examples(engine, examples.take([0, 1, 2]))
