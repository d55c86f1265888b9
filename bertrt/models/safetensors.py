"""Reader and writer of safetensors files, without the package of that name.

The layout::

    u64 length, little-endian | length bytes of JSON | data
    JSON:  {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...}

The offsets count from the first byte of the data; the tensors fill the data without gap or overlap.
The entry ``__metadata__``, where there is one, maps text to text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import fits, parse_json
from bertrt.host.stored import File
from bertrt.host.writing import writing_file
from bertrt.plan.weights import Constant

__all__ = ["DTYPES", "WIDENED", "read_safetensors", "widened", "write_safetensors"]

# The format's names of element types, and numpy's
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "uint16",  # numpy has none; widened below
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# Those that are computed with as float32
WIDENED = ("F64", "F16", "BF16")
# The format's own limit is 100 MB. A tensor takes some 100 bytes, and a thousand where Python has
# read them.
_LONGEST_HEADER = 16 << 20
# What is written; numpy has no bfloat16 and no e4m3, and a plan's weights have their bits as uint16
# and uint8.
_WRITTEN = {"float32": "F32", "uint16": "BF16", "int8": "I8", "uint8": "F8_E4M3"}
# The data begin at a cache line, for readers that map them.
_ALIGNMENT = 64


def read_safetensors(path: str | Path) -> dict[str, Constant]:
    """Find the tensors of a safetensors file.

    Returns name -> :class:`~bertrt.plan.weights.Constant` in file order. Tensors of another float
    type come as float32, computed in memory and so without a file; all others are read when they
    are asked for.

    Raises MissingFileError if there is no such file, UnsupportedModelError for an element type that
    is none of float, integer and bool, and ModelFormatError for every other deviation from the
    format.
    """
    path = Path(path)
    data = File(path)
    header, start = _read_header(path, data)
    for name, entry in header.items():
        _check_entry(f"{path}: the tensor {_short(name)}", entry)
    reached = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != reached:
            raise ModelFormatError(
                f"{path}: the tensor {_short(name)} begins at byte {begin} of the data, and the "
                f"one before it ends at {reached}"
            )
        reached = end
    if start + reached != len(data):
        raise ModelFormatError(
            f"{path}: the tensors end at byte {start + reached}, the file at {len(data)}: damaged, "
            "or truncated"
        )
    return {
        name: _read_tensor(name, entry, data, start + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Constant]:
    """Write arrays to a safetensors file, one after the other: float32, int8, or uint16 and uint8,
    which are the bits of bfloat16 and e4m3.

    Returns name -> :class:`~bertrt.plan.weights.Constant`: the same arrays, with their places in
    the file. Raises WriteError.
    """
    path = Path(path)
    header, offsets, end = {}, {}, 0
    for name, array in arrays.items():
        offsets[name], end = end, end + array.nbytes
        header[name] = {
            "dtype": _WRITTEN[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    with writing_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            little = array.dtype.newbyteorder("<")
            file.write(np.ascontiguousarray(array, little).data)
    return {
        name: Constant(name, array, path, start + offsets[name]) for name, array in arrays.items()
    }


def _read_header(path: Path, data: File) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where the data begin."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) >= 8 and _LONGEST_HEADER < length <= len(data) - 8:
        raise ModelFormatError(
            f"{path}: the header has {length} bytes, and at most {_LONGEST_HEADER} are read"
        )
    if len(data) < 8 or length > len(data) - 8:
        raise ModelFormatError(
            f"{path} is no safetensors file, or is truncated: it has {len(data)} bytes, and its "
            f"header should have {length}"
        )
    try:
        header = parse_json(data[8 : 8 + length].tobytes(), distinct=True)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFormatError(f"{path}: the header is not JSON: {error}") from None
    except ValueError as error:
        raise ModelFormatError(f"{path}: the header {error}") from None
    if not isinstance(header, dict):
        raise ModelFormatError(f"{path}: the header is {_short(header)}, expected a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFormatError(f"{path}: __metadata__ is {_short(metadata)}, expected text to text")
    return header, 8 + length


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFormatError(
            f"{where} is described by {_short(entry)}, expected dtype, shape and data_offsets"
        )
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UnsupportedModelError(
            f"{where} has the element type {_short(kind)}, expected one of {', '.join(DTYPES)}"
        )
    if not _counts(shape) or not fits(shape):
        raise ModelFormatError(f"{where} has the shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != 2:
        raise ModelFormatError(f"{where} has the data_offsets {_short(offsets)}")
    size = prod(shape) * np.dtype(DTYPES[kind]).itemsize
    if offsets[1] - offsets[0] != size:
        raise ModelFormatError(
            f"{where} lies at {_short(offsets)}, and its shape {_short(shape)} of {kind} takes "
            f"{size} bytes"
        )


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _read_tensor(name: str, entry: dict[str, Any], data: File, offset: int) -> Constant:
    kind = entry["dtype"]
    stored = data.stored(offset, DTYPES[kind], entry["shape"])
    if kind in WIDENED:
        return Constant(name, widened(stored.array, kind))
    return Constant.of(name, stored)


def widened(array: np.ndarray, kind: str) -> np.ndarray:
    """Elements of a type of `DTYPES` as bertrt computes with them: those of other floats as
    float32 (read-only), all else as it is."""
    if kind not in WIDENED:
        return array
    if kind == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(all="ignore"):
            array = array.astype(np.float32)
    array.flags.writeable = False
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
