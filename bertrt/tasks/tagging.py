"""Tagging: a tag for each word, and the entities that the tags make up.

Two rules. That of GluonNLP, scripts/bert/data/ner.py, for lists of words, and by its name for texts
too, which it splits at white space: every word is tokenized by itself, its first token carries the
tag, a text that is too long is refused, and so is a word without tokens (on which the script
fails).

For texts the rules of transformers' token-classification pipeline, by the names of its
`aggregation_strategy`. A text's words are the tokenizer's own (`Tokenizer.tokenize_text`), each
with the tag of its `first` token, that of the highest mean probability (`average`), or that of its
token which is surest (`max`); `simple` tags every token. Two things differ from the pipeline. Words
are told from where the tokenizer parts them, and not from the lengths of tokens and the places of
blanks: so punctuation, and a letter that loses its accent, part the same words with every
tokenizer. And the tags "E-" and "S-" end an entity.

A text that is longer than the model is read in windows, each half a window after the one before it,
and every token's row is that of the window which shows most of the text around it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError, ModelFormatError
from bertrt.results import Entity, Tagging
from bertrt.tasks.base import Request, Task, names_of, softmax
from bertrt.tasks.windows import cut_windows, overlapping, stitch_rows
from bertrt.text.encoding import Encoding, Pieces, Tokenizer
from bertrt.text.inputs import Words, check_words, join_words, split_words

__all__ = ["Tagger", "entity_spans", "merge_entities", "to_bioes"]


@dataclass(frozen=True, eq=False)
class _Tagged:
    """What is tagged.

    Attributes:
        words: the words.
        tokens: of each word the tokens that tell its tag, by their numbers in the text.
        aggregation: how they tell it.
        windows: where the text is cut.
        before: the special tokens that a window begins with.
    """

    words: Words
    tokens: list[list[int]]
    aggregation: str
    windows: list[tuple[int, int]]
    before: int


class Tagger(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("logits",)
    rows = "tokens"

    def __init__(self, labels: Sequence[str] | None, aggregation: str) -> None:
        self._labels = labels
        self._aggregation = aggregation

    def inputs(self, batch: Any) -> tuple[list[Any], bool]:
        """See `Task.inputs`."""
        return check_words(batch)

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`."""
        room = tokenizer.room(pair=False)
        if room < 1:
            raise ModelFormatError(
                f"the model takes sequences of {tokenizer.max_length} tokens: there is no room for "
                "a text"
            )
        scripts = self._aggregation == "gluonnlp"
        in_words: dict[int, Words] = {}
        for i, text in texts.items():
            if isinstance(text, list):
                in_words[i] = join_words(text)
            elif scripts:
                in_words[i] = split_words(text)
        whole = {i: text for i, text in texts.items() if i not in in_words}
        made: dict[int, Request | BertrtError] = {}
        pieces = tokenizer.tokenize_words([words.words for words in in_words.values()])
        for (i, words), own in zip(in_words.items(), pieces, strict=True):
            made[i] = self._listed(i, words, own, tokenizer)
        pieces = tokenizer.tokenize_text(list(whole.values()))
        for (i, text), own in zip(whole.items(), pieces, strict=True):
            made[i] = _request(own.ids, *_units(text, own, self._aggregation), tokenizer)
        return made

    def _listed(
        self, index: int, words: Words, pieces: Pieces, tokenizer: Tokenizer
    ) -> Request | BertrtError:
        """The request for words by GluonNLP's rule, or why there is none."""
        if not words.words:
            return InvalidInputError(f"batch[{index}] holds no word")
        firsts = {word: at for at, word in reversed(list(enumerate(pieces.words)))}
        for number, word in enumerate(words.words):
            if number not in firsts:
                shown = repr(word if len(word) <= 40 else word[:37] + "...")
                return InvalidInputError(
                    f"batch[{index}]: word {number}, {shown}, holds nothing that gives a token"
                )
        room = tokenizer.room(pair=False)
        if self._aggregation == "gluonnlp" and len(pieces.ids) > room:
            return InvalidInputError(
                f"batch[{index}] has {len(pieces.ids)} tokens, and the model tags up to {room}: "
                "split the text, so that no word goes without a tag"
            )
        tokens = [[firsts[number]] for number in range(len(words.words))]
        return _request(pieces.ids, words, tokens, "gluonnlp", tokenizer)

    def request_of(
        self, index: int, encoding: Encoding, tokenizer: Tokenizer | None
    ) -> Request | BertrtError:
        """See `Task.request_of`. Ids do not say where the words stand."""
        return InvalidInputError(
            f"batch[{index}] comes in ids, which do not say where its words stand: tagging takes "
            "texts"
        )

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[np.ndarray]:
        """See `Task.read`: each window's logits, (tokens, tags)."""
        names_of(self._labels, values["logits"])
        # Copies, so that a part does not keep its whole batch alive.
        return [rows.copy() for rows in np.split(values["logits"], batch.cu_seqlens[1:-1])]

    def answer(self, request: Request, parts: Sequence[Any]) -> Tagging:
        """See `Task.answer`."""
        tagged: _Tagged = request.source
        words, tokens = tagged.words, tagged.tokens
        if not words.words:
            return Tagging((), (), (), ())
        logits = stitch_rows(parts, tagged.windows, tagged.before)
        labels = names_of(self._labels, logits)
        if tagged.aggregation in ("average", "max"):
            probabilities = softmax(logits)
            rows = np.stack([_AGGREGATE[tagged.aggregation](probabilities[own]) for own in tokens])
            best = rows.argmax(axis=1).tolist()
        else:
            chosen = logits[[own[0] for own in tokens]]
            best, rows = chosen.argmax(axis=1).tolist(), softmax(chosen)
        tags = tuple(labels[i] for i in best)
        scores = tuple(row[i] for row, i in zip(rows.tolist(), best, strict=True))
        entities = merge_entities(words, tags, scores, bare=tagged.aggregation != "gluonnlp")
        return Tagging(tuple(words.words), tags, scores, entities)


# The probabilities of a word, out of those of its tokens
_AGGREGATE = {
    "average": lambda rows: np.add.reduce(rows, axis=0) / len(rows),
    "max": lambda rows: rows[rows.max(axis=1).argmax()],
}


def _units(text: str, pieces: Pieces, aggregation: str) -> tuple[Words, list[list[int]], str]:
    """What of a text has a tag, with its tokens: its words, but with "simple" its tokens."""
    assert pieces.spans is not None  # of a text they are known
    spans: list[tuple[int, int]] = []
    tokens: list[list[int]] = []
    last = None
    for at, (word, (start, end)) in enumerate(zip(pieces.words, pieces.spans, strict=True)):
        if aggregation != "simple":
            # A token that shows nothing, such as the blank before a word, is no word's.
            if not text[start:end].strip():
                continue
            if word == last:
                spans[-1] = spans[-1][0], end
                tokens[-1].append(at)
                continue
        spans.append((start, end))
        tokens.append([at])
        last = word
    return Words(text, [text[start:end] for start, end in spans], spans), tokens, aggregation


def _request(
    ids: Sequence[int],
    words: Words,
    tokens: list[list[int]],
    aggregation: str,
    tokenizer: Tokenizer,
) -> Request:
    """The request for a text in tokens, in as many windows as it takes."""
    room = tokenizer.room(pair=False)
    windows = cut_windows(len(ids), room, overlapping(room))
    before = int(np.flatnonzero(tokenizer.join([-1]).ids == -1)[0])
    sequences = [tokenizer.join(ids[begin:end]) for begin, end in windows]
    return Request(
        # Nothing at all is nothing to run.
        [sequence for sequence in sequences if len(sequence.ids)],
        False,
        source=_Tagged(words, tokens, aggregation, windows, before),
    )


def merge_entities(
    words: Words, tags: Sequence[str], scores: Sequence[float], *, bare: bool = False
) -> tuple[Entity, ...]:
    """The entities of tags, by the rule of `entity_spans`.

    Args:
        words: the words and where they stand.
        tags, scores: one for each word.
        bare: see `entity_spans`.
    """
    entities = []
    for kind, first, last in entity_spans(tags, bare=bare):
        start, end = words.spans[first][0], words.spans[last][1]
        score = sum(scores[first : last + 1]) / (last + 1 - first)
        entities.append(Entity(kind, words.text[start:end], start, end, score))
    return tuple(entities)


def entity_spans(tags: Sequence[str], *, bare: bool = False) -> list[tuple[str, int, int]]:
    """The entities of tags in the schemes BIOES, BIO (both kinds) and IO: each one's kind, and its
    first and last word.

    An entity begins at "B-" or "S-", after one that ended at "E-" or "S-", after a word that is in
    none, and where the kind changes: what seqeval, with which GluonNLP's script counts, takes for
    an entity. Tags without such a prefix belong to none ("O", and "X", the tag of GluonNLP for
    what carries none); where `bare` is set, all but "O" do, as in transformers: "PER" is in an
    entity as "I-PER" is, whose kind is what stands behind the first "-", if there is one.
    """
    spans = []
    first: int | None = None
    kind = last = ""
    # One more word, in no entity, ends the last.
    for index, tag in enumerate(itertools.chain(tags, ["O"])):
        match = re.fullmatch(r"([BIES])-(.+)", tag, re.DOTALL)
        if match:
            prefix, this = match.groups()
        else:
            prefix, this = ("I", tag) if bare and tag != "O" else ("", "")
        if first is not None and (prefix in ("", "B", "S") or this != kind or last in ("E", "S")):
            spans.append((tags[first].partition("-")[2] or tags[first], first, index - 1))
            first = None
        if prefix and first is None:
            first = index
        kind, last = this, prefix
    return spans


def to_bioes(tags: Sequence[str]) -> list[str]:
    """The same entities in the scheme BIOES, in which GluonNLP's script trains; "O" elsewhere."""
    converted = ["O"] * len(tags)
    for kind, first, last in entity_spans(tags):
        if first == last:
            converted[first] = f"S-{kind}"
            continue
        converted[first + 1 : last] = [f"I-{kind}"] * (last - first - 1)
        converted[first], converted[last] = f"B-{kind}", f"E-{kind}"
    return converted
