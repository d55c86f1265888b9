"""Arguments of the engine's methods, checked."""

from __future__ import annotations

import operator
import re
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np

from bertrt.engine.batching import Batching
from bertrt.engine.line import PRIORITIES
from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.host.cores import MAX_THREADS

__all__ = ["check_load", "check_on_error", "check_set", "check_threads", "check_turn"]

_PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")


def check_load(backend: Any, device: Any, precision: Any, batching: Any) -> None:
    """Refuse what cannot be meant as these arguments of `Engine.load`."""
    given = (("backend", backend), ("device", device), ("precision", precision))
    for name, value in given:
        if not isinstance(value, str) and (name, value) != ("precision", None):
            raise InvalidTypeError(f"{name} is a {type(value).__name__}; expected a str")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3}(,\d{1,3})*)?", device):
        raise InvalidInputError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    if precision not in (None, *_PRECISIONS):
        raise InvalidInputError(
            f"precision is {precision!r}; expected one of {', '.join(_PRECISIONS)}"
        )
    if batching is not None and not isinstance(batching, Batching):
        raise InvalidTypeError(
            f"batching is a {type(batching).__name__}; expected a bertrt.Batching"
        )


def check_on_error(on_error: Any) -> None:
    if not isinstance(on_error, str):
        raise InvalidTypeError(f"on_error is a {type(on_error).__name__}; expected a str")
    if on_error not in ("raise", "return"):
        raise InvalidInputError(f"on_error is {on_error!r}; expected 'raise' or 'return'")


def _index(name: str, value: Any) -> int:
    with suppress(TypeError):
        if not isinstance(value, bool | np.bool_):
            # An int of numpy is one too.
            return operator.index(value)
    raise InvalidTypeError(f"{name} is a {type(value).__name__}; expected an int")


def check_threads(threads: Any) -> int:
    count = _index("threads", threads)
    if not 1 <= count <= MAX_THREADS:
        raise InvalidInputError(f"threads is {count}; expected 1 to {MAX_THREADS}")
    return count


def check_turn(priority: Any, deadline: Any) -> int:
    """The priority; refuses what is none, and what is no deadline."""
    step = _index("priority", priority)
    if step not in PRIORITIES:
        raise InvalidInputError(f"priority is {step}; expected {PRIORITIES[0]} to {PRIORITIES[-1]}")
    if deadline is None:
        return step
    seconds: Any = deadline
    if not isinstance(deadline, Real) or isinstance(deadline, bool):
        raise InvalidTypeError(
            f"deadline is a {type(deadline).__name__}; expected a number of seconds, or None"
        )
    if not seconds >= 0:
        raise InvalidInputError(f"deadline is {deadline}; expected seconds from now, 0 or more")
    return step


def check_set(settings: Any) -> None:
    """Refuse a setting that `Engine.with_settings` cannot make another one."""
    if "max_length" in settings:
        raise InvalidInputError(
            "max_length belongs to the tokenizer, which both engines have: load the model again"
        )
