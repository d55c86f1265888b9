"""What a model is for, on its way into a bundle: presets, labels and pooling, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
)
from bertrt.tasks.settings import LABELLED, PRESETS, TASKS, complete_pooling

__all__ = ["apply_preset", "check_labels", "check_pooling", "check_task"]

# The output that each task is made of, and the net that has it
_NEEDED = {
    "classification": ("logits", "a BERTClassifier"),
    "regression": ("logits", "a BERTClassifier"),
    "question-answering": ("logits", "a BertForQA"),
    "tagging": ("logits", "a BERTTagger"),
    "embedding": ("sequence_output", "a BERTModel"),
    "fill-mask": ("masked_lm_outputs", "a BERTModel built with use_decoder=True"),
    "next-sentence": (
        "next_sentence_classifier_output",
        "a BERTModel built with use_classifier=True",
    ),
}


def apply_preset(
    task: str, labels: Sequence[str] | None, settings: Mapping[str, Any] | None
) -> tuple[str, Sequence[str] | None, Mapping[str, Any] | None]:
    """Task, labels and settings, where `task` may be the name of a preset; what is given goes
    before what the preset says."""
    preset = PRESETS.get(task) if isinstance(task, str) else None
    if preset is None:
        return task, labels, settings
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidTypeError(f"settings should be a dict of names and values, found {settings!r}")
    return (
        preset.task,
        preset.labels if labels is None else labels,
        {"pair": preset.pair, **(settings or {})},
    )


def check_task(task: str, outputs: Sequence[str]) -> None:
    """Check that `task` is known and that a model with these outputs can do it."""
    if not isinstance(task, str) or task not in TASKS:
        raise InvalidInputError(
            f"task should be one of {', '.join(TASKS)}, or a data set of GluonNLP's "
            f"({', '.join(PRESETS)}), found {task!r}"
        )
    output, net = _NEEDED[task]
    if output not in outputs:
        raise InvalidInputError(
            f"task {task!r} needs the output {output}, as of {net}; this net returns "
            f"{', '.join(outputs)}"
        )


def check_labels(labels: Sequence[str] | None, task: str, outputs: int) -> list[str] | None:
    """The labels of a head with `outputs` logits, numbered where the caller names none."""
    for name, wanted in (("regression", 1), ("question-answering", 2)):
        if task == name and outputs != wanted:
            raise InvalidInputError(f"{name} needs a head of {wanted}; it has {outputs} outputs")
    if task not in LABELLED:
        if labels is not None:
            raise InvalidInputError(
                f"labels are for {' and '.join(LABELLED)}, and the task is {task!r}"
            )
        return None
    if labels is None:
        return [str(index) for index in range(outputs)]
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise InvalidTypeError(f"labels should be a list of non-empty strings, found {labels!r}")
    labels = list(labels)
    if not all(isinstance(label, str) and label for label in labels):
        raise InvalidTypeError(f"labels should be a list of non-empty strings, found {labels!r}")
    if len(labels) != outputs or len(set(labels)) != outputs:
        raise InvalidInputError(
            f"the head has {outputs} outputs and needs as many different labels; "
            f"found {len(labels)}: {', '.join(labels)}"
        )
    return labels


def check_pooling(
    pooling: Mapping[str, Any] | None, task: str, outputs: Sequence[str]
) -> dict[str, Any] | None:
    """The pooling of an embedding model, the plain mean where the caller names none."""
    if task != "embedding":
        if pooling is not None:
            raise InvalidInputError(f"pooling is for embeddings, and the task is {task!r}")
        return None
    pooling = complete_pooling(pooling)
    if pooling["mode"] == "pooled" and "pooled_output" not in outputs:
        raise InvalidInputError("pooling mode 'pooled' needs a net built with use_pooler=True")
    return pooling
