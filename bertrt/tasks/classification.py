"""Classification: a label for a text or a pair of texts, and what each label scores.

What makes scores of a model's outputs is its `activation`: softmax for one label a text, sigmoid
for several at once, identity for numbers that are no classes; see `bertrt.tasks.settings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import ModelFormatError
from bertrt.results import Classification
from bertrt.tasks.activations import activate
from bertrt.tasks.base import Request, Task, names_of, softmax

__all__ = ["Classifier"]


class Classifier(Task):
    """See `bertrt.tasks.base.Task`."""

    what = "this classifier"

    def __init__(
        self,
        labels: Sequence[str] | None,
        pair: bool | None,
        activation: str,
        outputs: Iterable[str],
    ) -> None:
        self._labels = labels
        self.pair = pair
        self._activation = activation
        # A graph may end in the probabilities themselves.
        self._ready = "probabilities" in outputs and "logits" not in outputs
        self.outputs = ("probabilities",) if self._ready else ("logits",)
        if self._ready and activation != "softmax":
            raise ModelFormatError(
                f"the activation is {activation}, and the model gives probabilities, not logits"
            )

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Classification]:
        """See `Task.read`."""
        found = values[self.outputs[0]]
        labels = names_of(self._labels, found)
        if self._ready:
            scores = found
        elif self._activation == "softmax":
            scores = softmax(found)
        else:
            scores = np.array([activate(self._activation, row) for row in found])
        # Equal scores, as where an activation is flat, are told apart by their logits.
        best = np.lexsort((-found, -scores), axis=1)[:, 0]
        return [
            Classification(labels[i], row[i], _by_label(labels, row), own.truncated)
            for i, row, own in zip(best, scores.tolist(), requests, strict=True)
        ]


def _by_label(labels: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    """Each label's score: the highest, where several outputs have one name."""
    scores: dict[str, float] = {}
    for label, score in zip(labels, row, strict=True):
        scores[label] = max(score, scores.get(label, score))
    return scores
