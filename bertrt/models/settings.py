"""Settings of the user's own, which go before those of the model: the same names for
`Engine.load(settings=...)`, for `bertrt import --set` and in what is shown."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from bertrt.errors import InvalidInputError, InvalidTypeError, ModelFormatError
from bertrt.tasks.embedding import pooled_width
from bertrt.tasks.modules import Module, output_width
from bertrt.tasks.settings import (
    LABELLED,
    SETTINGS,
    check_pooling,
    check_settings,
    complete_pooling,
    complete_settings,
)
from bertrt.tasks.table import make_task
from bertrt.text.encoding import Tokenizer

__all__ = ["shown_settings", "with_settings"]

# What of an embedding's pooling a user may set, by the user's names
_POOLING = {
    "pooling": "mode",
    "normalize": "normalize",
    "truncate_dim": "truncate_dim",
    "include_prompt": "include_prompt",
    "subwords": "subwords",
}


class _Model(Protocol):
    """What settings are for: the two classes that hold them."""

    @property
    def task(self) -> str | None: ...
    @property
    def labels(self) -> list[str] | None: ...
    @property
    def pooling(self) -> Mapping[str, Any] | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def modules(self) -> Sequence[Module]: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def rows(self) -> Mapping[str, str]: ...
    @property
    def architecture(self) -> Mapping[str, Any]: ...


M = TypeVar("M", bound=_Model)


def with_settings(model: M, given: Any) -> M:
    """The same model with settings of the user's own.

    Args:
        model: a `Model` or `HuggingFaceModel`. Its tokenizer gets the new `max_length`, and belongs
            to the model that is returned.
        given: a dict of settings by the names that `shown_settings` has, or None.

    Raises:
        InvalidTypeError: no dict of names and values.
        InvalidInputError: a name that the model's task does not have, or a value that it cannot
            have, also together with another; the message says what there is.
    """
    if given is None:
        return model
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InvalidTypeError(f"settings should be a dict of names and values, found {given!r}")
    if not given:
        return model
    if model.task is None:
        raise InvalidInputError(
            f"settings: {', '.join(given)} cannot be set: a bare graph has no task to set them for"
        )
    known = list(shown_settings(model))
    if "pooling" in known and given.get("pooling") == "words" and "subwords" not in known:
        known.append("subwords")
    for name in given:
        if name not in known:
            raise InvalidInputError(
                f"the settings of {model.task}: there is no {name!r}; there is {', '.join(known)}"
            )
    tokenizer, max_length = model.tokenizer, model.architecture["max_length"]
    if tokenizer is not None:
        max_length = _max_length(given.get("max_length", tokenizer.max_length), max_length)
    own = {name: value for name, value in given.items() if name in SETTINGS[model.task]}
    settings = complete_settings(own, model.task, max_length, model.settings)
    labels, pooling = model.labels, model.pooling
    if "labels" in given:
        labels = _labels(given["labels"], labels)
    if pooling is not None:
        changed = {_POOLING[name]: value for name, value in given.items() if name in _POOLING}
        modes = changed.get("mode")
        if isinstance(modes, list | tuple):
            changed["mode"] = modes[0] if len(modes) == 1 else list(modes)
        pooling = complete_pooling(changed, pooling)
        _check_pooling(pooling, given, model)
    try:
        make_task(
            model.task,
            labels=labels,
            pooling=pooling,
            settings=settings,
            rows=model.rows,
            modules=model.modules,
        )
    except ModelFormatError as error:
        raise InvalidInputError(f"settings: {error}") from None
    # Others may be using it, whom no change must meet.
    if tokenizer is not None and max_length != tokenizer.max_length:
        tokenizer.limit(max_length)
    # mypy knows no protocol of dataclasses
    return replace(model, labels=labels, pooling=pooling, settings=settings)  # type: ignore[type-var]


def shown_settings(model: _Model) -> dict[str, Any]:
    """Everything that is set for a model and could be set by its user, by the names for that."""
    if model.task is None:
        return {}
    shown: dict[str, Any] = {}
    if model.task in LABELLED:
        shown["labels"] = model.labels
    if model.pooling is not None:
        pooling = check_pooling(model.pooling, "the model")
        shown |= {name: pooling[key] for name, key in _POOLING.items() if key in pooling}
    shown |= check_settings(model.settings, model.task, "the model")
    if model.tokenizer is not None:
        shown["max_length"] = model.tokenizer.max_length
    return shown


def _max_length(value: Any, positions: int) -> int:
    try:
        length = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        length = -1
    if not 3 <= length <= positions:
        raise InvalidInputError(
            f"settings: max_length should be a whole number from 3 to the model's {positions} "
            f"positions, found {value!r}"
        )
    return length


def _labels(value: Any, before: Sequence[str] | None) -> list[str]:
    fits = isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
    if not fits or len(set(value)) != len(value) or len(value) != len(before or value):
        raise InvalidInputError(
            f"settings: labels should be {len(before or ())} different names, a list in the order "
            f"of {', '.join(before or ())}; found {value!r}"
        )
    return list(value)


def _check_pooling(pooling: Mapping[str, Any], given: Mapping[str, Any], model: _Model) -> None:
    """Refuse a pooling that gives the modules behind it what they cannot take, and a vector cut to
    more than it has."""
    try:
        width = output_width(
            model.modules, pooled_width(pooling, model.architecture["hidden"]), "settings"
        )
    except ModelFormatError as error:
        raise InvalidInputError(f"{error}; the pooling is {pooling['mode']!r}") from None
    cut = given.get("truncate_dim")
    if cut is not None and cut > width:
        raise InvalidInputError(
            f"settings: truncate_dim should be from 1 to the {width} numbers of a vector, "
            f"found {cut}"
        )
