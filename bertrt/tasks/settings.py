"""The tasks, what can be set for each, and the presets that GluonNLP has names for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError, ModelFormatError
from bertrt.tasks.activations import ACTIVATIONS

__all__ = [
    "AGGREGATIONS",
    "GROUPED",
    "HUGGINGFACE",
    "LABELLED",
    "POOLED_FROM",
    "PRESETS",
    "SCORED",
    "SETTINGS",
    "TASKS",
    "Preset",
    "Setting",
    "check_pooling",
    "check_settings",
    "complete_pooling",
    "complete_settings",
]

# The tasks whose logits have names
LABELLED = ("classification", "tagging")

# The tasks that labelled data are read for
SCORED = ("classification", "regression", "question-answering", "tagging")

# What becomes of a token's rows, and the output that each reads: the poolings of
# sentence-transformers, of which several may be joined, then ours
_JOINED = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
POOLED_FROM = dict.fromkeys(_JOINED, "sequence_output") | {
    "pooled": "pooled_output",
    "tokens": "sequence_output",
    "words": "sequence_output",
}
# Of these, those that give a vector for each of several parts of a text
GROUPED = ("tokens", "words")

# How the tags of a word's tokens become the word's, by the names that transformers has for it
AGGREGATIONS = ("first", "average", "max", "simple")


@dataclass(frozen=True)
class Setting:
    """A thing that can be set.

    Attributes:
        default: its value unless told otherwise.
        expected: what values it may have, in words.
        fits: whether a value is one of them.
        later: whether there was no such setting once. A file says it only where it is not the
            default, and one of before, which says nothing, means the default.
    """

    default: Any
    expected: str
    fits: Callable[[Any], bool]
    later: bool = False


def _count(default: int) -> Setting:
    return Setting(default, "a whole number from 1", lambda v: type(v) is int and v >= 1)


def _flag(default: bool, *, later: bool = False) -> Setting:
    return Setting(default, "true or false", lambda v: isinstance(v, bool), later)


def _choice(*values: str, later: bool = False) -> Setting:
    return Setting(
        values[0],
        f"one of {', '.join(values)}",
        lambda v: isinstance(v, str) and v in values,
        later,
    )


def _activation(default: str) -> dict[str, Setting]:
    names = (name.lower() for name in ACTIVATIONS)
    return {"activation": _choice(default, *(n for n in names if n != default), later=True)}


def _is_pooling(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 1 and all(isinstance(mode, str) and mode in _JOINED for mode in value)
    return isinstance(value, str) and value in POOLED_FROM


def _are_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(part, str) for item in value.items() for part in item
    )


# Larger than any logit; also what is not finite is not within it.
_FAR = 1e30
_PAIR = {
    "pair": Setting(
        None,
        "true (pairs of texts only), false (single texts only) or null (either)",
        lambda v: v is None or isinstance(v, bool),
    )
}
_PROMPTS = {
    "prompts": Setting({}, "an object of texts by their names", _are_texts, later=True),
    "default_prompt_name": Setting(
        None,
        "the name of a prompt, or null",
        lambda v: v is None or isinstance(v, str),
        later=True,
    ),
}
_POOLING = {
    "mode": Setting(
        "mean",
        f"one of {', '.join(POOLED_FROM)}, or a list of two or more of {', '.join(_JOINED)}",
        _is_pooling,
    ),
    "normalize": _flag(False),
    "truncate_dim": Setting(
        None,
        "a whole number from 1, or null",
        lambda v: v is None or (type(v) is int and v >= 1),
        later=True,
    ),
    "include_prompt": _flag(True, later=True),
    "similarity": Setting(
        None,
        "one of cosine, dot, euclidean, manhattan, or null",
        lambda v: v in (None, "cosine", "dot", "euclidean", "manhattan"),
        later=True,
    ),
    # Described, and checked with their arrays, by `bertrt.tasks.modules`
    "modules": Setting([], "a list of modules", lambda v: isinstance(v, list), later=True),
}
_SUBWORDS = {"subwords": _choice("avg", "sum", "last")}

# Question answering's are those of GluonNLP's scripts/bert/finetune_squad.py, with its defaults.
SETTINGS: dict[str, dict[str, Setting]] = {
    "classification": _PAIR | _activation("softmax") | _PROMPTS,
    "regression": _PAIR | _activation("identity") | _PROMPTS,
    "embedding": _PROMPTS,
    "question-answering": {
        "max_query_length": _count(64),
        "doc_stride": _count(128),
        "windows": _choice("gluonnlp", "overlapping", later=True),
        "n_best": _count(20),
        "max_answer_length": _count(30),
        "null_answer": _flag(False),
        "null_threshold": Setting(
            0.0,
            "a number",
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _FAR,
        ),
    },
    "tagging": {"aggregation": _choice("gluonnlp", *AGGREGATIONS, later=True)},
    "fill-mask": {"top_k": _count(5)},
    "next-sentence": {},
}
TASKS = tuple(SETTINGS)

# What is set for a model from Hugging Face, where the default is a rule of GluonNLP's scripts that
# such a model does not follow
HUGGINGFACE: dict[str, dict[str, Any]] = {
    "question-answering": {"windows": "overlapping"},
    "tagging": {"aggregation": "first"},
}


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


def complete_settings(
    given: Any, task: str, max_length: int, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a person sets for `task`, checked, with the defaults for the rest.

    Args:
        given: a dict of settings, or None.
        task: one of `TASKS`.
        max_length: the tokens of a sequence at most. A question gets half of what is too short for
            the default.
        before: what holds in the place of the defaults.

    Raises:
        InvalidInputError, InvalidTypeError: a setting that the task does not have, or a value
            that it cannot have.
    """
    what = f"the settings of {task}"
    settings = _complete(given, SETTINGS[task], what, before)
    if problem := _prompt_problem(settings):
        raise InvalidInputError(f"{what}: {problem}")
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


def complete_pooling(given: Any, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As `complete_settings`, for an embedding's pooling; the plain mean if `given` is None."""
    given, before = _table(given, "pooling"), before or {}
    known = _pooling_of(given.get("mode", before.get("mode")))
    # The setting of another mode does not hold any more.
    before = {name: value for name, value in before.items() if name in known}
    return _complete(given, known, "pooling", before)


def _pooling_of(mode: Any) -> dict[str, Setting]:
    return _POOLING | (_SUBWORDS if mode == "words" else {})


def _table(given: Any, what: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidTypeError(f"{what} should be a dict of names and values, found {given!r}")
    return given


def _complete(
    given: Any, known: Mapping[str, Setting], what: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
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
    chosen = {name: setting.default for name, setting in known.items()} | {
        **(before or {}),
        **given,
    }
    return {
        name: chosen[name]
        for name, setting in known.items()
        if not (setting.later and chosen[name] == setting.default)
    }


def _prompt_problem(settings: Mapping[str, Any]) -> str | None:
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts", {})
    if name is None or name in prompts:
        return None
    there = f"the prompts are {', '.join(prompts)}" if prompts else "there are no prompts"
    return f"default_prompt_name is {name!r}, and {there}"


def check_settings(found: Any, task: str, where: str) -> dict[str, Any]:
    """Check the settings that a file holds: all of them must be there, but later ones.

    Returns:
        Every setting of the task, the defaults of those that are not there among them.

    Raises:
        ModelFormatError: one is missing, unknown, or has a value that it cannot have.
    """
    settings = _check(found, SETTINGS[task], f"{where}, settings")
    if problem := _prompt_problem(settings):
        raise ModelFormatError(f"{where}, settings: {problem}")
    return settings


def check_pooling(found: Any, where: str) -> dict[str, Any]:
    """As `check_settings`, for an embedding's pooling."""
    mode = found.get("mode") if isinstance(found, Mapping) else None
    return _check(found, _pooling_of(mode), f"{where}, pooling")


def _check(found: Any, known: Mapping[str, Setting], where: str) -> dict[str, Any]:
    required = [name for name, setting in known.items() if not setting.later]
    if not isinstance(found, Mapping) or not set(required) <= found.keys() <= known.keys():
        raise ModelFormatError(f"{where}: found {found!r}, expected {', '.join(known) or '{}'}")
    for name, value in found.items():
        if not known[name].fits(value):
            raise ModelFormatError(
                f"{where}: the field {name!r} should be {known[name].expected}, found {value!r}"
            )
    return {name: found.get(name, setting.default) for name, setting in known.items()}
