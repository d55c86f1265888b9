"""Tagging: a tag for each word, and the entities that the tags make up.

The rules are those of scripts/bert/data/ner.py of GluonNLP: every word is tokenized by itself, its
first token carries the tag, a text that is too long is refused, and so is a word without tokens
(on which the script fails).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import InvalidInputError
from bertrt.results import Entity, Tagging
from bertrt.tasks.base import Request, Task, names_of, softmax
from bertrt.text.encoding import Tokenizer
from bertrt.text.inputs import Words, check_words

__all__ = ["Tagger", "entity_spans", "merge_entities", "to_bioes"]


class Tagger(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("logits",)
    rows = "tokens"

    def __init__(self, labels: Sequence[str] | None) -> None:
        self._labels = labels

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """See `Task.encode`."""
        texts, single = check_words(batch)
        room = tokenizer.room(pair=False)
        before = int(np.flatnonzero(tokenizer.join([-1]).ids == -1)[0])
        requests = []
        for i, pieces in enumerate(tokenizer.tokenize_words([words.words for words in texts])):
            firsts = {word: at for at, word in reversed(list(enumerate(pieces.words)))}
            for index, word in enumerate(texts[i].words):
                if index not in firsts:
                    raise InvalidInputError(
                        f"batch[{i}]: word {index}, {word!r}, holds nothing that gives a token"
                    )
            if len(pieces.ids) > room:
                raise InvalidInputError(
                    f"batch[{i}] has {len(pieces.ids)} tokens, and the model tags up to {room}: "
                    "split the text, so that no word goes without a tag"
                )
            tagged = [before + firsts[index] for index in range(len(texts[i].words))]
            requests.append(Request([tokenizer.join(pieces.ids)], False, source=(texts[i], tagged)))
        return requests, single

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Tagging]:
        """See `Task.read`."""
        labels = names_of(self._labels, values["logits"])
        found = []
        for first, request in zip(batch.cu_seqlens.tolist(), requests, strict=False):
            words, tagged = request.source
            logits = values["logits"][[first + position for position in tagged]]
            best = logits.argmax(axis=1).tolist()
            tags = tuple(labels[i] for i in best)
            rows = softmax(logits).tolist()
            scores = tuple(row[i] for row, i in zip(rows, best, strict=True))
            found.append(
                Tagging(tuple(words.words), tags, scores, merge_entities(words, tags, scores))
            )
        return found


def merge_entities(
    words: Words, tags: Sequence[str], scores: Sequence[float]
) -> tuple[Entity, ...]:
    """The entities of tags, by the rule of `entity_spans`.

    Args:
        words: the words and where they stand.
        tags, scores: one for each word.
    """
    entities = []
    for kind, first, last in entity_spans(tags):
        start, end = words.spans[first][0], words.spans[last][1]
        score = sum(scores[first : last + 1]) / (last + 1 - first)
        entities.append(Entity(kind, words.text[start:end], start, end, score))
    return tuple(entities)


def entity_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of tags in the schemes BIOES, BIO (both kinds) and IO: each one's kind, and its
    first and last word.

    An entity begins at "B-" or "S-", after one that ended at "E-" or "S-", after a word that is in
    none, and where the kind changes: what seqeval, with which GluonNLP's script counts, takes for
    an entity. Tags without such a prefix belong to none ("O", and "X", the tag of GluonNLP for
    what carries none).
    """
    spans = []
    first: int | None = None
    kind = last = ""
    # One more word, in no entity, ends the last.
    for index, tag in enumerate(itertools.chain(tags, ["O"])):
        match = re.fullmatch(r"([BIES])-(.+)", tag, re.DOTALL)
        prefix, this = match.groups() if match else ("", "")
        if first is not None and (prefix in ("", "B", "S") or this != kind or last in ("E", "S")):
            spans.append((kind, first, index - 1))
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
