"""The table of the tasks: the one place that knows every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.tasks.base import Task
from bertrt.tasks.classification import Classifier
from bertrt.tasks.embedding import Embedder
from bertrt.tasks.fill_mask import MaskFiller
from bertrt.tasks.next_sentence import NextSentencePredictor
from bertrt.tasks.question_answering import QuestionAnswering
from bertrt.tasks.regression import Regressor
from bertrt.tasks.settings import SETTINGS, TASKS, check_pooling, check_settings
from bertrt.tasks.tagging import Tagger

__all__ = ["TABLE", "make_task"]


@dataclass(frozen=True)
class _Given:
    """What a task may be made of; see `make_task`."""

    labels: Sequence[str] | None
    pooling: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A task in the table.

    Attributes:
        takes: what it takes and gives, in words.
        make: makes it, of what was checked before.
    """

    takes: str
    make: Callable[[_Given], Task]


TABLE = {
    "classification": Entry(
        "texts or pairs to a Classification",
        lambda given: Classifier(
            given.labels, given.settings["pair"], given.rows, given.settings["activation"]
        ),
    ),
    "regression": Entry(
        "texts or pairs to a Regression", lambda given: Regressor(given.settings["pair"])
    ),
    "embedding": Entry("texts or pairs to an Embedding", lambda given: Embedder(given.pooling)),
    "question-answering": Entry(
        "(question, context) pairs, of any length, to an Answer",
        lambda given: QuestionAnswering(given.settings),
    ),
    "tagging": Entry("texts or lists of words to a Tagging", lambda given: Tagger(given.labels)),
    "fill-mask": Entry(
        "texts with masks to a FillMask", lambda given: MaskFiller(given.settings["top_k"])
    ),
    "next-sentence": Entry("pairs to a NextSentence", lambda given: NextSentencePredictor()),
}
assert TABLE.keys() == set(TASKS), "every task has its settings and its place in the table"


def make_task(
    task: str,
    *,
    labels: Sequence[str] | None,
    pooling: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    rows: Mapping[str, str],
) -> Task:
    """The task of a model.

    Args:
        task: one of `bertrt.tasks.settings.TASKS`.
        labels: the names of the logits in their order, for classification and tagging; None: "0",
            "1", ...
        pooling: an embedding model's, see `bertrt.tasks.settings`.
        settings: the task's, see `bertrt.tasks.settings`.
        rows: the model's outputs, with what each has a row for ("tokens", "seqs", "positions").

    Raises:
        UnsupportedModelError: there is no such task.
        ModelFormatError: pooling or settings are wrong, or the model lacks the output needed.
    """
    if task not in TABLE:
        raise UnsupportedModelError(
            f"the model's task is {task!r}; this version predicts {', '.join(TASKS)} "
            "(run() works for every model)"
        )
    check_settings(settings, task, "the model")
    if task == "embedding":
        check_pooling(pooling, "the model")
    settings = {name: setting.default for name, setting in SETTINGS[task].items()} | dict(settings)
    made = TABLE[task].make(_Given(labels, pooling or {}, settings, rows))
    for name in made.outputs:
        if name not in rows:
            raise ModelFormatError(
                f"the task {task} needs the output {name}; the model has {', '.join(rows)}"
            )
        if rows[name] != made.rows:
            kinds = {"seqs": "sequence", "tokens": "token", "positions": "masked position"}
            raise ModelFormatError(
                f"the task {task} needs {name} with a row for each {kinds[made.rows]}; the model's "
                f"has one for each {kinds.get(rows[name], rows[name])}"
            )
    return made
