"""Tags of words, and the entities that they make up."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.results import Entity
from bertrt.tasks.tagging import merge_entities
from bertrt.text.inputs import split_words


def entities(tags: str) -> list[tuple[str, int, int]]:
    """Of words "0 1 2 ...": the kind, first and last word of each entity."""
    words = split_words(" ".join(map(str, range(len(tags.split())))))
    found = merge_entities(words, tags.split(), [1.0] * len(words.words))
    return [(entity.label, int(entity.text[0]), int(entity.text[-1])) for entity in found]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("S-A O S-B", [("A", 0, 0), ("B", 2, 2)]),
        ("B-A I-A E-A O", [("A", 0, 2)]),
        ("B-A E-A B-A E-A", [("A", 0, 1), ("A", 2, 3)]),
        # BIO of the two kinds, and tags that a model strings together as nobody wrote them
        ("B-A I-A B-A O", [("A", 0, 1), ("A", 2, 2)]),
        ("O I-A I-A O", [("A", 1, 2)]),
        ("I-A I-B I-B", [("A", 0, 0), ("B", 1, 2)]),
        ("B-A O I-A", [("A", 0, 0), ("A", 2, 2)]),
        ("E-A E-A", [("A", 0, 0), ("A", 1, 1)]),
        ("S-A I-A", [("A", 0, 0), ("A", 1, 1)]),
        ("E-A I-A", [("A", 0, 0), ("A", 1, 1)]),
        ("B-A X I-A", [("A", 0, 0), ("A", 2, 2)]),
        ("B-A S-A E-A", [("A", 0, 0), ("A", 1, 1), ("A", 2, 2)]),
        # Tags of another scheme belong to no entity.
        ("X NOUN B- A", []),
    ],
)
def test_entities(tags: str, expected) -> None:
    assert entities(tags) == expected


def test_where_entities_stand() -> None:
    words = split_words(" Ada\tLovelace  of London")
    found = merge_entities(words, ["B-PER", "E-PER", "O", "S-LOC"], [0.5, 1.0, 1.0, 0.75])
    assert found == (
        Entity("PER", "Ada\tLovelace", 1, 13, 0.75),
        Entity("LOC", "London", 18, 24, 0.75),
    )


@pytest.fixture
def tagger(tiny):
    """The tiny model as a tagger: its logits are a token's (id, type, position, length)."""
    return tiny.load(
        task="tagging",
        labels=["O", "B-a", "I-a", "E-a"],
        pooling=None,
        outputs=["logits"],
        rows={"logits": "tokens"},
    )


def test_words_have_the_tag_of_their_first_token(tagger, tiny) -> None:
    one, other = tagger.predict(["hello worlds", ["a", "worlds", "b"]])
    # [CLS] hello world ##s [SEP]: the largest of (id, type, position, length) of "world" is its id.
    assert one.words == ("hello", "worlds") and one.tags == ("O", "O")
    assert other.words == ("a", "worlds", "b")
    (batch,) = tiny.backends[0].batches
    assert batch.token_ids.tolist() == [2, 5, 6, 7, 3, 2, 9, 6, 7, 10, 3]
    logits = np.array([[9, 0, 1, 6], [6, 0, 2, 6], [10, 0, 4, 6]], np.float64)
    powers = np.exp(logits)
    np.testing.assert_allclose(other.scores, powers[:, 0] / powers.sum(axis=1), rtol=1e-6)
    assert tagger.predict("a").words == ("a",)
    assert tagger.tokenize("a b").ids.tolist() == [2, 9, 10, 3]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ("a a a a a a a", InvalidInputError, r"batch\[0\] has 7 tokens, .* up to 6: split"),
        (["a", "a \u200b b"], InvalidInputError, r"batch\[1\]: word 1, '\\u200b', .* no"),
        ([["a", ""]], InvalidInputError, r"batch\[0\]\[1\] is an empty string"),
        ([[]], InvalidInputError, r"batch\[0\] holds no word"),
        (" \t", InvalidInputError, r"batch\[0\] holds no word"),
        ([], InvalidInputError, "the batch is empty"),
        ([("a", "b")], InvalidTypeError, r"batch\[0\] is a tuple .*expected a str or a list"),
        ([["a", 3]], InvalidTypeError, r"batch\[0\] is a list of str, int"),
        (("a", "b"), InvalidTypeError, "batch is a tuple"),
        (None, InvalidTypeError, "batch is None"),
        ([["a\0"]], InvalidInputError, r"batch\[0\]\[0\] holds a NUL"),
    ],
)
def test_bad_input(tagger, tiny, batch, error, message) -> None:
    with pytest.raises(error, match=message):
        tagger.predict(batch)
    assert not tiny.backends[0].batches
