"""Tensors as the Open Inference Protocol sends them: in numbers, or in bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.serve.protocols.vectors import check_finite
from bertrt.serve.refusals import Refusal

__all__ = ["DTYPES", "Tensor", "from_bytes", "from_list", "from_numbers", "to_bytes", "to_list"]

# The data types that there are here, little-endian as they are sent; BYTES, texts, is the other.
DTYPES = {
    "BOOL": np.dtype("?"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
# Those that an input may have.
_TAKEN = ("BYTES", "INT32", "INT64")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor.

    Attributes:
        name: its name.
        datatype: one of `DTYPES`, or "BYTES".
        shape: its shape.
        values: an array of that shape; of BYTES the elements, row after row.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: np.ndarray | list[bytes]


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """An input that comes in bytes, which have to be as many as its shape says.

    Raises:
        Refusal: 400, for what it cannot be.
    """
    count = _count(name, datatype, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), _elements(name, count, bytes(raw)))
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise Refusal(
            400,
            f"the input {name!r} has {len(raw)} bytes; {datatype} of the shape {list(shape)} has "
            f"{count * dtype.itemsize}",
        )
    return Tensor(name, datatype, tuple(shape), np.frombuffer(raw, dtype).reshape(shape))


def _elements(name: str, count: int, raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    place = 0
    while place < len(raw) and len(found) < count:
        start = place + _LENGTH.size
        if start > len(raw):
            break
        place = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
        found.append(raw[start:place])
    if len(found) != count or place != len(raw):
        raise Refusal(
            400,
            f"the input {name!r} has {len(raw)} bytes, which are not {count} elements, each behind "
            "its length in 4 bytes",
        )
    return found


def from_list(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """An input that comes in JSON: a list of its elements, row after row, or of its rows.

    Raises:
        Refusal: 400, for what it cannot be.
    """
    count = _count(name, datatype, shape)
    if len(shape) == 2 and any(isinstance(row, list) for row in data):
        rows = data
        if len(rows) != shape[0] or any(
            not isinstance(row, list) or len(row) != shape[1] for row in rows
        ):
            raise Refusal(400, f"the rows of the input {name!r} are not of its shape {list(shape)}")
        data = [value for row in rows for value in row]
    kind = str if datatype == "BYTES" else int
    if other := set(map(type, data)) - {kind}:
        what = "strings" if kind is str else "whole numbers"
        raise Refusal(400, f"the input {name!r} has a {other.pop().__name__} among its {what}")
    if datatype == "BYTES":
        data = [value.encode() for value in data]
    return from_numbers(name, datatype, shape, data, count)


def from_numbers(
    name: str, datatype: str, shape: Sequence[int], data: Any, count: int | None = None
) -> Tensor:
    """An input that comes as a sequence of int or bytes, row after row.

    Raises:
        Refusal: 400, for what it cannot be.
    """
    count = _count(name, datatype, shape) if count is None else count
    if len(data) != count:
        raise Refusal(
            400,
            f"the input {name!r} has {len(data)} elements; its shape {list(shape)} says {count}",
        )
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), list(data))
    try:
        values = np.array(data, np.int64)
    except OverflowError:
        raise Refusal(400, f"the input {name!r} has a number beyond INT64") from None
    if datatype == "INT32" and (values != values.astype(np.int32)).any():
        raise Refusal(400, f"the input {name!r} has a number beyond INT32")
    return Tensor(name, datatype, tuple(shape), values.astype(DTYPES[datatype]).reshape(shape))


def _count(name: str, datatype: str, shape: Sequence[int]) -> int:
    if datatype not in _TAKEN:
        raise Refusal(
            400,
            f"the input {name!r} is of {datatype[:20]!r}; expected {', '.join(_TAKEN)}",
        )
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise Refusal(
            400,
            f"the input {name!r} has the shape {list(shape)[:9]}; expected [inputs], or "
            "[inputs, tokens] of ids, and none of them 0",
        )
    return math.prod(shape)


def to_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.tobytes()
    return b"".join(_LENGTH.pack(len(value)) + value for value in tensor.values)


def to_list(tensor: Tensor) -> Any:
    """A tensor as what `json_response` takes: its elements, row after row.

    Raises:
        Refusal: 500 it has numbers that JSON does not have.
    """
    if isinstance(tensor.values, np.ndarray):
        check_finite(tensor.values)
        return np.ascontiguousarray(tensor.values).reshape(-1)
    return [value.decode() for value in tensor.values]
