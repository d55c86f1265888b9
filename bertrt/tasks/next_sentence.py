"""Next-sentence prediction: whether the second text of a pair follows the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import InvalidInputError
from bertrt.results import NextSentence
from bertrt.tasks.base import Request, Task, check_pairs, softmax
from bertrt.text.encoding import Text, Tokenizer
from bertrt.text.inputs import check_texts

__all__ = ["NextSentencePredictor"]


class NextSentencePredictor(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("next_sentence_classifier_output",)

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """See `Task.encode`. The second text must give a token too."""
        requests, single = super().encode(batch, tokenizer)
        texts, _ = check_texts(batch)
        for i, pieces in enumerate(tokenizer.tokenize([text[1] for text in texts])):
            if not pieces:
                raise InvalidInputError(
                    f"batch[{i}]: the second text is empty, or holds nothing that gives a token"
                )
        return requests, single

    def check(self, texts: Sequence[Text]) -> None:
        """See `Task.check`."""
        check_pairs(texts, True, "next-sentence prediction")

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
