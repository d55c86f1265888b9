"""A property that is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["cached"]

Value = TypeVar("Value")


class cached(Generic[Value]):  # noqa: N801  (used as a decorator)
    """`functools.cached_property` as Python has it from 3.12 on: without a lock.

    Before, one lock for all objects of a class is held while a value is computed: a child that is
    forked meanwhile waits for it for good. Threads that ask at once may compute a value twice.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Value:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self._compute(instance)
        # Found before this, from now on.
        instance.__dict__[self._name] = value
        return value
