"""Errors where memory is short, which say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bertrt.errors import BertrtError, OutOfMemoryError

__all__ = ["named", "naming_memory"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def named(error: BaseException, method: str) -> BaseException:
    """An error of `Engine`'s method; an OutOfMemoryError where memory is short, wherever it comes
    from: numpy and Python raise a plain MemoryError."""
    if not isinstance(error, MemoryError) or isinstance(error, BertrtError):
        return error
    told = OutOfMemoryError(
        f"the memory of this machine does not suffice for Engine.{method}"
        f"{f': {error}' if str(error) else ''}; free some, or ask for less at once"
    )
    told.__cause__ = error
    return told


def naming_memory(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """The method, whose errors are `named`."""

    @functools.wraps(method)
    def naming(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except MemoryError as error:
            if (told := named(error, method.__name__)) is error:
                raise
            raise told from error

    return naming
