"""Next-sentence prediction: whether the second text of a pair follows the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError
from bertrt.results import NextSentence
from bertrt.tasks.base import Request, Task, softmax
from bertrt.text.encoding import Tokenizer

__all__ = ["NextSentencePredictor"]


class NextSentencePredictor(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("next_sentence_classifier_output",)
    pair = True
    what = "next-sentence prediction"

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`. The second text must give a token too."""
        made = dict(super().requests(texts, tokenizer))
        seconds = tokenizer.tokenize([second for _, second in texts.values()])
        for i, pieces in zip(texts, seconds, strict=True):
            if not pieces:
                made[i] = InvalidInputError(
                    f"batch[{i}]: the second text is empty, or holds nothing that gives a token"
                )
        return made

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[NextSentence]:
        """See `Task.read`. Class 0 is that the second text follows the first: the label 1 of
        scripts/bert/data/create_pretraining_data.py of GluonNLP is a random next."""
        logits = values["next_sentence_classifier_output"]
        best = logits.argmax(axis=1).tolist()
        scores = softmax(logits)[:, 0].tolist()
        return [
            NextSentence(label == 0, score, own.truncated)
            for label, score, own in zip(best, scores, requests, strict=True)
        ]
