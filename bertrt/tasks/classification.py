"""Classification: a label for a text or a pair of texts, and what each label scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.results import Classification
from bertrt.tasks.base import Request, Task, names_of, softmax

__all__ = ["Classifier"]


class Classifier(Task):
    """See `bertrt.tasks.base.Task`."""

    what = "this classifier"

    def __init__(
        self, labels: Sequence[str] | None, pair: bool | None, outputs: Iterable[str]
    ) -> None:
        self._labels = labels
        self.pair = pair
        # A graph may end in the probabilities themselves.
        self._ready = "probabilities" in outputs and "logits" not in outputs
        self.outputs = ("probabilities",) if self._ready else ("logits",)

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Classification]:
        """See `Task.read`."""
        found = values[self.outputs[0]]
        labels = names_of(self._labels, found)
        best = found.argmax(axis=1)
        scores = found if self._ready else softmax(found)
        return [
            Classification(labels[i], row[i], dict(zip(labels, row, strict=True)), own.truncated)
            for i, row, own in zip(best, scores.tolist(), requests, strict=True)
        ]
