"""The tasks, what can be set for each, and the presets that GluonNLP has names for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError, ModelFormatError

__all__ = [
    "LABELLED",
    "POOLED_FROM",
    "PRESETS",
    "SCORED",
    "SETTINGS",
    "TASKS",
    "Preset",
    "check_pooling",
    "check_settings",
    "complete_pooling",
    "complete_settings",
]

# The tasks whose logits have names
LABELLED = ("classification", "tagging")

# The tasks that labelled data are read for
SCORED = ("classification", "regression", "question-answering", "tagging")

# An embedding's mode, and the output that it reads
POOLED_FROM = {
    "mean": "sequence_output",
    "cls": "sequence_output",
    "pooled": "pooled_output",
    "tokens": "sequence_output",
    "words": "sequence_output",
}


@dataclass(frozen=True)
class Setting:
    """A thing that can be set: its value unless told otherwise, and what values it may have.
    Bundles lack a `later` one where they were made before there was such a thing, and mean the
    default."""

    default: Any
    expected: str
    fits: Callable[[Any], bool]
    later: bool = False


def _count(default: int) -> Setting:
    return Setting(default, "a whole number from 1", lambda v: type(v) is int and v >= 1)


def _flag(default: bool) -> Setting:
    return Setting(default, "true or false", lambda v: isinstance(v, bool))


def _choice(*values: str) -> Setting:
    return Setting(
        values[0], f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values
    )


_PAIR = {
    "pair": Setting(
        None,
        "true (pairs of texts only), false (single texts only) or null (either)",
        lambda v: v is None or isinstance(v, bool),
    )
}
# What makes scores of a classifier's outputs: probabilities that exclude each other, a probability
# each, or the outputs themselves.
_ACTIVATION = {"activation": replace(_choice("softmax", "sigmoid", "none"), later=True)}
_POOLING = {"mode": _choice(*POOLED_FROM), "normalize": _flag(False)}
_SUBWORDS = {"subwords": _choice("avg", "sum", "last")}

# Question answering's are those of GluonNLP's scripts/bert/finetune_squad.py, with its defaults.
SETTINGS: dict[str, dict[str, Setting]] = {
    "classification": _PAIR | _ACTIVATION,
    "regression": _PAIR,
    "embedding": {},
    "question-answering": {
        "max_query_length": _count(64),
        "doc_stride": _count(128),
        "n_best": _count(20),
        "max_answer_length": _count(30),
        "null_answer": _flag(False),
        "null_threshold": Setting(
            0.0,
            "a number",
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v),
        ),
    },
    "tagging": {},
    "fill-mask": {"top_k": _count(5)},
    "next-sentence": {},
}
TASKS = tuple(SETTINGS)


@dataclass(frozen=True)
class Preset:
    """A task on a data set that GluonNLP knows: what it is, how its classes are numbered, and how
    it is scored.

    Attributes:
        task: one of `TASKS`.
        labels: a classifier's, in the order of its logits.
        pair: whether texts come in pairs.
        metrics: names of metrics of `bertrt.evaluation`; the first is the one that tells models
            apart.
    """

    task: str
    labels: tuple[str, ...] | None
    pair: bool
    metrics: tuple[str, ...] = ("accuracy",)


# From gluonnlp.data.classification: class_labels, in their order, is_pair and the metrics of each
# task. The benchmark GLUE gives Spearman's correlation beside Pearson's.
_TWO = ("0", "1")
_ENTAILMENT = ("not_entailment", "entailment")
_INFERENCE = ("neutral", "entailment", "contradiction")
PRESETS = {
    "MRPC": Preset("classification", _TWO, True, ("accuracy", "f1")),
    "QQP": Preset("classification", _TWO, True, ("accuracy", "f1")),
    "QNLI": Preset("classification", _ENTAILMENT, True),
    "RTE": Preset("classification", _ENTAILMENT, True),
    "STS-B": Preset("regression", None, True, ("pearson", "spearman")),
    "CoLA": Preset("classification", _TWO, False, ("matthews",)),
    "MNLI": Preset("classification", _INFERENCE, True),
    "WNLI": Preset("classification", _TWO, True),
    "SST": Preset("classification", _TWO, False),
    "XNLI": Preset("classification", _INFERENCE, True),
    "LCQMC": Preset("classification", _TWO, True),
    "ChnSentiCorp": Preset("classification", _TWO, False),
}


def complete_settings(given: Any, task: str, max_length: int) -> dict[str, Any]:
    """What a person sets for `task`, checked, with the defaults for the rest.

    Args:
        given: a dict of settings, or None.
        task: one of `TASKS`.
        max_length: the tokens of a sequence at most. A question gets half of what is too short for
            the default.

    Raises:
        InvalidInputError, InvalidTypeError: a setting that the task does not have, or a value
            that it cannot have.
    """
    what = f"the settings of {task}"
    settings = _complete(given, SETTINGS[task], what)
    longest = settings.get("max_query_length")
    # [CLS], two [SEP], and a token of the context
    if longest is not None and max_length <= longest + 3:
        if "max_query_length" in (given or {}):
            raise InvalidInputError(
                f"{what}: max_query_length is {longest}; a sequence of {max_length} tokens has "
                f"room for less than {max_length - 3} of a question"
            )
        settings["max_query_length"] = max(1, (max_length - 3) // 2)
    return settings


def complete_pooling(given: Any) -> dict[str, Any]:
    """As `complete_settings`, for an embedding's pooling; the plain mean if `given` is None."""
    given = _table(given, "pooling")
    words = given.get("mode") == "words"
    return _complete(given, _POOLING | (_SUBWORDS if words else {}), "pooling")


def _table(given: Any, what: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidTypeError(f"{what} should be a dict of names and values, found {given!r}")
    return given


def _complete(given: Any, known: Mapping[str, Setting], what: str) -> dict[str, Any]:
    given = _table(given, what)
    for name, value in given.items():
        if name not in known:
            raise InvalidInputError(
                f"{what}: there is no {name!r}; there is {', '.join(known) or 'nothing to set'}"
            )
        if not known[name].fits(value):
            raise InvalidInputError(
                f"{what}: {name} should be {known[name].expected}, found {value!r}"
            )
    return {name: given.get(name, setting.default) for name, setting in known.items()}


def check_settings(found: Any, task: str, where: str) -> None:
    """Check the settings that a file holds: all of them must be there, but for later ones.

    Raises:
        ModelFormatError: one is missing, unknown, or has a value that it cannot have.
    """
    _check(found, SETTINGS[task], f"{where}, settings")


def check_pooling(found: Any, where: str) -> None:
    """As `check_settings`, for an embedding's pooling."""
    words = isinstance(found, Mapping) and found.get("mode") == "words"
    _check(found, _POOLING | (_SUBWORDS if words else {}), f"{where}, pooling")


def _check(found: Any, known: Mapping[str, Setting], where: str) -> None:
    wanted = {name for name, setting in known.items() if not setting.later}
    if not isinstance(found, Mapping) or not wanted <= found.keys() <= known.keys():
        raise ModelFormatError(f"{where}: found {found!r}, expected {', '.join(known) or '{}'}")
    for name, value in found.items():
        if not known[name].fits(value):
            raise ModelFormatError(
                f"{where}: the field {name!r} should be {known[name].expected}, found {value!r}"
            )
