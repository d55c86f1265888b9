"""The metrics of the tasks, in points: 100 is perfect.

They are scikit-learn's, scipy's and seqeval's. Those of question answering, which no such library
has, follow the evaluation scripts of SQuAD 1.1 and 2.0 (rajpurkar.github.io/SQuAD-explorer).
"""

from __future__ import annotations

import collections
import importlib
import math
import re
import string
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bertrt.errors import InvalidInputError, MissingDependencyError
from bertrt.evaluation.examples import GoldAnswer
from bertrt.tasks.settings import PRESETS
from bertrt.tasks.tagging import entity_spans, to_bioes

__all__ = [
    "METRICS",
    "check_metrics",
    "exact_match",
    "is_right",
    "metrics_of",
    "score",
    "token_f1",
]

# Of tasks on data that have no name. Presets have their own.
_OF_TASK = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "question-answering": ("exact_match", "token_f1"),
    "tagging": ("entity_f1", "entity_precision", "entity_recall"),
}


def metrics_of(task: str) -> tuple[str, ...]:
    """The names of a task's metrics; the first is the one that tells models apart.

    Args:
        task: a preset ("MRPC", ...), "classification", "regression", "question-answering" or
            "tagging".

    Raises:
        InvalidInputError: the task has no metric.
    """
    if task in PRESETS:
        return PRESETS[task].metrics
    if task not in _OF_TASK:
        raise InvalidInputError(
            f"task {task!r} has no metric; there are some for {', '.join(_OF_TASK)}, "
            f"{', '.join(PRESETS)}"
        )
    return _OF_TASK[task]


def check_metrics(metrics: Sequence[str], labels: Sequence[str] | None = None) -> None:
    """Check that `score` can compute metrics, before there is anything to score.

    Raises:
        InvalidInputError: there is no such metric, or "f1" without two labels.
        MissingDependencyError: the library of a metric is not installed.
    """
    for name in metrics:
        if name not in METRICS:
            raise InvalidInputError(f"there is no metric {name!r}; there is {', '.join(METRICS)}")
        METRICS[name].library()
    if "f1" in metrics and (labels is None or len(labels) != 2):
        raise InvalidInputError(f"the metric f1 is for two labels, found {labels!r}")


def score(
    metrics: Sequence[str],
    gold: Sequence[Any],
    found: Sequence[Any],
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score predictions.

    Args:
        metrics: names of `METRICS`.
        gold: what is right, as `bertrt.evaluation.examples.Examples.labels` has it.
        found: what was predicted, in the same order: labels, numbers, the texts of answers, or
            lists of tags.
        labels: the labels of a classifier in the order of its logits, for "f1", which is that of
            the second of two.

    Returns:
        Points by metric, 100 for perfect; NaN where a metric is not defined: a correlation with
        predictions that are all equal.

    Raises:
        InvalidInputError: as many predictions as there is gold are wanted, and one at least.
        And what `check_metrics` raises.
    """
    if len(gold) != len(found) or not gold:
        raise InvalidInputError(f"{len(found)} predictions are scored with {len(gold)} examples")
    check_metrics(metrics, labels)
    return {name: 100.0 * METRICS[name].compute(gold, found, labels) for name in metrics}


def is_right(task: str, gold: Any, found: Any) -> bool | None:
    """Whether a single prediction is right: the label; the answer, word by word; every entity of a
    sentence. None for "regression", where there is no such thing.

    Args:
        task: "classification", "regression", "question-answering" or "tagging".
        gold, found: as for `score`.
    """
    if task == "regression":
        return None
    if task == "question-answering":
        return exact_match(gold, found)
    if task == "tagging":
        return entity_spans(gold) == entity_spans(found)
    return bool(gold == found)


@dataclass(frozen=True)
class _Metric:
    """A metric, and the module that it is computed with; None where it is ours.

    `of(module, gold, found, labels)` is 1 for perfect.
    """

    module: str | None
    of: Callable[[Any, Sequence[Any], Sequence[Any], Any], float]

    def library(self) -> Any:
        if self.module is None:
            return None
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise MissingDependencyError(
                f"a metric needs the module {self.module} ({error}): pip install 'bertrt[evaluate]'"
            ) from error

    def compute(self, gold: Sequence[Any], found: Sequence[Any], labels: Any) -> float:
        return float(self.of(self.library(), gold, found, labels))


# --- of labels, numbers and entities ----------------------------------------------------------


def _f1(sklearn: Any, gold: Sequence[str], found: Sequence[str], labels: Sequence[str]) -> float:
    return sklearn.f1_score(gold, found, pos_label=labels[1], zero_division=0)


def _correlation(name: str) -> Callable[..., float]:
    def of(scipy: Any, gold: Sequence[float], found: Sequence[float], labels: Any) -> float:
        if len(set(gold)) < 2 or len(set(found)) < 2:
            return math.nan
        return getattr(scipy, name)(gold, found)[0]

    return of


def _entities(name: str) -> Callable[..., float]:
    def of(seqeval: Any, gold: Sequence[Any], found: Sequence[Any], labels: Any) -> float:
        with warnings.catch_warnings():
            # It warns where there is nothing to divide by, which counts as 0.
            warnings.simplefilter("ignore")
            # One scheme for both; other tags than those of entities would be one to seqeval.
            return getattr(seqeval, name)([*map(to_bioes, gold)], [*map(to_bioes, found)])

    return of


# --- of answers -------------------------------------------------------------------------------


def _normalized(text: str) -> str:
    """SQuAD's: lower case, without ASCII punctuation, articles and double white space."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _accepted(gold: Sequence[GoldAnswer]) -> list[str]:
    """Normalised answers, without those of which nothing is left; "" where there is none. That is
    the rule of 2.0; to the script of 1.1 a full stop could be an answer."""
    return [text for answer in gold if (text := _normalized(answer.text))] or [""]


def exact_match(gold: Sequence[GoldAnswer], found: str) -> bool:
    """Whether an answer is one of those given, or "" where none is given."""
    return _normalized(found) in _accepted(gold)


def token_f1(gold: Sequence[GoldAnswer], found: str) -> float:
    """The F1 of an answer's words, 0 to 1, with that of the answers given which it is like most."""
    return max(_overlap(text.split(), _normalized(found).split()) for text in _accepted(gold))


def _overlap(gold: list[str], found: list[str]) -> float:
    if not gold or not found:
        return float(gold == found)
    common = sum((collections.Counter(gold) & collections.Counter(found)).values())
    return 2 * common / (len(gold) + len(found))


METRICS = {
    "accuracy": _Metric(
        "sklearn.metrics", lambda lib, gold, found, _: lib.accuracy_score(gold, found)
    ),
    "f1": _Metric("sklearn.metrics", _f1),
    "macro_f1": _Metric(
        "sklearn.metrics",
        lambda lib, gold, found, _: lib.f1_score(gold, found, average="macro", zero_division=0),
    ),
    "matthews": _Metric(
        "sklearn.metrics", lambda lib, gold, found, _: lib.matthews_corrcoef(gold, found)
    ),
    "pearson": _Metric("scipy.stats", _correlation("pearsonr")),
    "spearman": _Metric("scipy.stats", _correlation("spearmanr")),
    "exact_match": _Metric(
        None, lambda lib, gold, found, _: sum(map(exact_match, gold, found)) / len(gold)
    ),
    "token_f1": _Metric(
        None, lambda lib, gold, found, _: math.fsum(map(token_f1, gold, found)) / len(gold)
    ),
    "entity_f1": _Metric("seqeval.metrics", _entities("f1_score")),
    "entity_precision": _Metric("seqeval.metrics", _entities("precision_score")),
    "entity_recall": _Metric("seqeval.metrics", _entities("recall_score")),
}
