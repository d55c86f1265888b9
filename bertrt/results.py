"""What `Engine.predict` returns: a small frozen class for each task."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

__all__ = [
    "Answer",
    "Candidate",
    "Classification",
    "Embedding",
    "Entity",
    "FillMask",
    "NextSentence",
    "Ranked",
    "Regression",
    "Result",
    "Span",
    "Tagging",
    "plain",
]


@dataclass(frozen=True)
class Classification:
    """The answer of a classifier.

    Attributes:
        label: the label that scores highest, also of a model that gives several at once: those
            are what `scores` says of each.
        score: its score, a probability unless the model's `activation` makes something else of
            its logits, as that of a CrossEncoder may.
        scores: every label's; with softmax they add up to 1. Where outputs share a name, the
            highest of theirs.
        truncated: whether the text was longer than the model takes, and was cut.
    """

    label: str
    score: float
    scores: dict[str, float]
    truncated: bool = False


@dataclass(frozen=True)
class Regression:
    """The answer of a model that predicts a number.

    Attributes:
        score: the number; of a CrossEncoder what its activation makes of it.
        truncated: whether the text was longer than the model takes, and was cut.
    """

    score: float
    truncated: bool = False


@dataclass(frozen=True)
class Ranked:
    """A document's place in the answer of `Engine.rerank`, whose list has the best first.

    Attributes:
        index: which of the documents it is, from 0.
        score: what the model gives for the query and the document.
        truncated: whether the two were longer than the model takes, and were cut.
    """

    index: int
    score: float
    truncated: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to a question about a context.

    Attributes:
        text: the answer. "" says that the context has none (where the model was trained to say
            so); "empty" is GluonNLP's word where no span of the context is a candidate at all.
            White space within an answer is a single blank, as in GluonNLP.
        score: its probability among the candidates.
        start, end: where it stands, in characters: ``context[start:end]`` is the answer as the
            context has it. Both 0 where there is none.
        nbest: the candidates, best first, this one among them.
        truncated: whether the question was longer than the model takes, and was cut. (A long
            context is not cut: it is read window by window.)
    """

    text: str
    score: float
    start: int
    end: int
    nbest: tuple[Span, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Span:
    """A candidate of an `Answer`, in the same words."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Entity:
    """Words that belong together.

    Attributes:
        label: what it is, such as "PER".
        text: the characters that it spans.
        start, end: where it stands in the text, in characters; in words that are given as a list,
            where it stands in ``" ".join(words)``.
        score: the mean of its words' scores.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tagging:
    """A tag for each word of a text.

    Attributes:
        words: the words, as they stand in the text; with the aggregation "simple" the tokens.
        tags: a tag for each, as the model was trained: in GluonNLP's scheme "O", or the kind of
            entity behind "B-" (first word), "I-", "E-" (last word) or "S-" (single word).
        scores: each tag's probability.
        entities: the entities that the tags make up, in order.
        truncated: always False: a text that is too long is read in windows, or is an error.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[float, ...]
    entities: tuple[Entity, ...]
    truncated: bool = False


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text as a vector, or its tokens or words as one each.

    Attributes:
        vector: float32, shape (width,): the model's hidden size, unless its poolings, modules or
            settings make another of it; where the model gives a vector for each token or word,
            (tokens, width) or (words, width).
        truncated: whether the text was longer than the model takes, and was cut.
        tokens: these tokens or words, one for each row of `vector`; None for a text as a whole.
        similarity: how the model's vectors are meant to be compared, "cosine", "dot", "euclidean"
            or "manhattan"; None where the model does not say.
    """

    vector: np.ndarray
    truncated: bool = False
    tokens: tuple[str, ...] | None = None
    similarity: str | None = None


@dataclass(frozen=True)
class Candidate:
    """What may stand in the place of a mask.

    Attributes:
        token: a token of the vocabulary, as it is spelled there.
        score: its probability.
        mask: which mask of the text it is for, from 0.
    """

    token: str
    score: float
    mask: int = 0


@dataclass(frozen=True)
class FillMask:
    """The most probable tokens for the masks of a text.

    Attributes:
        candidates: mask after mask, and each mask's best first.
        truncated: whether the text was longer than the model takes, and was cut (behind its last
            mask: a mask is never cut away).
    """

    candidates: tuple[Candidate, ...]
    truncated: bool = False


@dataclass(frozen=True)
class NextSentence:
    """Whether the second text of a pair follows the first.

    Attributes:
        is_next: whether it does.
        score: the probability that it does.
        truncated: whether the texts were longer than the model takes, and were cut.
    """

    is_next: bool
    score: float
    truncated: bool = False


Result = Classification | Regression | Answer | Tagging | Embedding | FillMask | NextSentence


def plain(result: Any) -> Any:
    """A result as values that JSON has: a dictionary of its attributes without those that are
    None."""
    if is_dataclass(result):
        values = ((field.name, getattr(result, field.name)) for field in fields(result))
        return {name: plain(value) for name, value in values if value is not None}
    if isinstance(result, tuple):
        return [plain(value) for value in result]
    return result.tolist() if isinstance(result, np.ndarray) else result
