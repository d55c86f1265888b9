"""Classification: a label for a text or a pair of texts, and what each label scores.

Scores are those of transformers' pipeline: of a model with one label a text, the probabilities that
softmax makes; of one with several at once, a sigmoid of each output; of several numbers that are no
classes, the outputs themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.results import Classification
from bertrt.tasks.base import Request, Task, check_pairs, names_of, softmax
from bertrt.text.encoding import Text

__all__ = ["Classifier"]


class Classifier(Task):
    """See `bertrt.tasks.base.Task`."""

    def __init__(
        self,
        labels: Sequence[str] | None,
        pair: bool | None,
        outputs: Iterable[str],
        activation: str,
    ) -> None:
        self._labels = labels
        self._pair = pair
        # A graph may end in the probabilities themselves.
        self._ready = "probabilities" in outputs and "logits" not in outputs
        self.outputs = ("probabilities",) if self._ready else ("logits",)
        self._activation = "none" if self._ready else activation

    def check(self, texts: Sequence[Text]) -> None:
        """See `Task.check`."""
        check_pairs(texts, self._pair, "this classifier")

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Classification]:
        """See `Task.read`."""
        found = values[self.outputs[0]]
        labels = names_of(self._labels, found)
        best = found.argmax(axis=1)
        scores = _ACTIVATIONS[self._activation](found)
        return [
            Classification(labels[i], row[i], _by_label(labels, row), own.truncated)
            for i, row, own in zip(best, scores.tolist(), requests, strict=True)
        ]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """In double precision, as `softmax`."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64)))


_ACTIVATIONS = {"softmax": softmax, "sigmoid": _sigmoid, "none": lambda outputs: outputs}


def _by_label(labels: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    """Each label's score: the highest, where several outputs have one name."""
    scores: dict[str, float] = {}
    for label, score in zip(labels, row, strict=True):
        scores[label] = max(score, scores.get(label, score))
    return scores
