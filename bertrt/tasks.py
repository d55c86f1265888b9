"""From a model's outputs to the results that people want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import ModelFormatError, UnsupportedModelError

__all__ = ["Classification", "Embedding", "Regression", "Result", "Task", "make_task"]


@dataclass(frozen=True)
class Classification:
    """The answer of a classifier.

    Attributes:
        label: the most probable label.
        score: its probability.
        scores: every label's probability.
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
        score: the number.
        truncated: whether the text was longer than the model takes, and was cut.
    """

    score: float
    truncated: bool = False


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text as a vector.

    Attributes:
        vector: float32, shape (hidden,).
        truncated: whether the text was longer than the model takes, and was cut.
    """

    vector: np.ndarray
    truncated: bool = False


Result = Classification | Regression | Embedding


class Task(Protocol):
    """A task's post-processing.

    Attributes:
        outputs: the names of the outputs that it needs.
    """

    outputs: tuple[str, ...]

    def results(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, truncated: Sequence[bool]
    ) -> Sequence[Result]:
        """One result for each sequence. Each depends on its own rows only, to the last bit."""
        ...


def make_task(
    task: str,
    *,
    labels: Sequence[str] | None,
    pooling: Mapping[str, Any] | None,
    outputs: Sequence[str],
) -> Task:
    """The post-processing of a model.

    Args:
        task: "classification", "regression" or "embedding".
        labels: a classifier's labels in the order of its logits; None: "0", "1", ...
        pooling: an embedding model's ``{"mode": "mean" | "cls" | "pooled", "normalize": bool}``.
        outputs: the names of the model's outputs.

    Raises:
        UnsupportedModelError: the task is none of these.
        ModelFormatError: the pooling is unknown, or the model lacks the output needed.
    """
    made: Task
    if task == "classification":
        made = _Classifier(labels)
    elif task == "regression":
        made = _Regressor()
    elif task == "embedding":
        made = _Embedder(pooling)
    else:
        raise UnsupportedModelError(
            f"the model's task is {task!r}; this version predicts classification, regression and "
            "embedding (run() works for every model)"
        )
    for name in made.outputs:
        if name not in outputs:
            raise ModelFormatError(
                f"the task {task} needs the output {name}; the model has {', '.join(outputs)}"
            )
    return made


class _Classifier:
    outputs: tuple[str, ...] = ("logits",)

    def __init__(self, labels: Sequence[str] | None) -> None:
        self._labels = labels

    def results(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, truncated: Sequence[bool]
    ) -> list[Classification]:
        logits = values["logits"].astype(np.float64)
        labels = self._labels or [str(i) for i in range(logits.shape[1])]
        if len(labels) != logits.shape[1]:
            raise ModelFormatError(
                f"the model has {logits.shape[1]} classes and {len(labels)} labels"
            )
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        best = logits.argmax(axis=1)
        return [
            Classification(labels[i], row[i], dict(zip(labels, row, strict=True)), cut)
            for i, row, cut in zip(best, probabilities.tolist(), truncated, strict=True)
        ]


class _Regressor:
    outputs: tuple[str, ...] = ("logits",)

    def results(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, truncated: Sequence[bool]
    ) -> list[Regression]:
        logits = values["logits"]
        if logits.shape[1] != 1:
            raise ModelFormatError(
                f"a regression model has one output number for each text, not {logits.shape[1]}"
            )
        return [
            Regression(score, cut)
            for score, cut in zip(logits[:, 0].tolist(), truncated, strict=True)
        ]


_POOLED_FROM = {"mean": "sequence_output", "cls": "sequence_output", "pooled": "pooled_output"}


class _Embedder:
    def __init__(self, pooling: Mapping[str, Any] | None) -> None:
        pooling = pooling or {}
        self._mode, self._normalize = pooling.get("mode"), pooling.get("normalize")
        if self._mode not in _POOLED_FROM or not isinstance(self._normalize, bool):
            raise ModelFormatError(
                f"an embedding model's pooling is {dict(pooling)!r}; expected "
                "{'mode': 'mean' | 'cls' | 'pooled', 'normalize': bool}"
            )
        self.outputs: tuple[str, ...] = (_POOLED_FROM[self._mode],)

    def results(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, truncated: Sequence[bool]
    ) -> list[Embedding]:
        rows = values[self.outputs[0]]
        starts = batch.cu_seqlens.tolist()
        embeddings = []
        for i, cut in enumerate(truncated):
            if self._mode == "mean":
                # A sum for each sequence, and no reduction over the whole batch: the order of the
                # additions, and so every bit, is the same in any batch.
                vector = rows[starts[i] : starts[i + 1]].sum(axis=0) / np.float32(
                    starts[i + 1] - starts[i]
                )
            elif self._mode == "cls":
                vector = rows[starts[i]].copy()
            else:
                vector = rows[i].copy()
            if self._normalize:
                norm = np.sqrt(np.square(vector).sum())
                vector /= max(norm, np.float32(1e-12))
            embeddings.append(Embedding(vector, cut))
        return embeddings
