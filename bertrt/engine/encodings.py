"""Inputs that come in ids: encodings that were made elsewhere, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertrt.batch import Limits
from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.text.encoding import Encoding

__all__ = ["check_encodings"]


def check_encodings(batch: Any, limits: Limits, max_length: int) -> tuple[list[Any], bool]:
    """What `Engine.predict` takes in ids, each input checked by itself.

    Args:
        batch: an `Encoding`, or a list of them.
        limits: what the model can take.
        max_length: the tokens of a sequence, at most.

    Returns:
        A list of encodings with int32 arrays of their own; in the place of what is none, or does
        not fit the model, the error that says so with its index. And whether it was a single one.
    """
    if isinstance(batch, Encoding):
        return [_attempt(0, batch, limits, max_length)], True
    return [_attempt(i, item, limits, max_length) for i, item in enumerate(batch)], False


def _attempt(index: int, item: Any, limits: Limits, max_length: int) -> Any:
    try:
        return _check(index, item, limits, max_length)
    except (InvalidInputError, InvalidTypeError) as error:
        return error.with_traceback(None)


def _check(index: int, item: Any, limits: Limits, max_length: int) -> Encoding:
    name = f"batch[{index}]"
    if not isinstance(item, Encoding):
        raise InvalidTypeError(
            f"{name} is a {type(item).__name__} among encodings; expected an Encoding"
        )
    ids = _whole(f"{name}.ids", item.ids, limits.vocab_size)
    # A model without token types takes the zeros that everyone passes.
    types = _whole(f"{name}.types", item.types, max(1, limits.type_vocab_size))
    if types.shape != ids.shape:
        raise InvalidInputError(
            f"{name}.types has {len(types)} entries; expected {len(ids)}, to match its ids"
        )
    if not 1 <= len(ids) <= max_length:
        raise InvalidInputError(
            f"{name} has {len(ids)} ids; the model takes 1 to {max_length}, special tokens included"
        )
    if type(item.prompt) is not int or not 0 <= item.prompt <= len(ids):
        raise InvalidInputError(
            f"{name}.prompt is {item.prompt!r}; expected how many of its {len(ids)} ids are a "
            "prompt's"
        )
    return Encoding(ids, types, bool(item.truncated), item.prompt)


def _whole(name: str, values: Any, limit: int) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidInputError(f"{name}: not an array ({error})") from None
    if array.dtype.kind not in "iu":
        raise InvalidTypeError(f"{name} has the dtype {array.dtype}; expected integers")
    if array.ndim != 1:
        raise InvalidInputError(f"{name} has the shape {array.shape}; expected (tokens,)")
    bad = np.flatnonzero((array < 0) | (array >= limit))
    if bad.size:
        raise InvalidInputError(
            f"{name}[{bad[0]}] is {array[bad[0]]}; the model takes 0 to {limit - 1}"
        )
    return array.astype(np.int32)  # a copy: the caller may write to it meanwhile
