"""MXNet's NDArray list files (``*.params``), read and written without MXNet.

The layout, all little-endian::

    u64 0x112 | u64 reserved | u64 count | count x array | u64 count | count x (u64 length | name)
    array:  u32 magic | [i32 storage] | i32 rank | rank x i64 extent | i32 device type |
            i32 device id | i32 dtype | data

``storage`` is absent in V1 arrays. A rank of 0 in V1 and V2, or -1 in V3, means "no array": the
record ends there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import MOST_AXES, fits
from bertrt.host.stored import File, Stored
from bertrt.host.writing import writing_file
from bertrt.plan.weights import Constant

__all__ = ["read_params", "write_params"]

_LIST_MAGIC = 0x112
_V2 = 0xF993FAC9
_VERSIONS = {0xF993FAC8: 1, _V2: 2, 0xF993FACA: 3}
_DENSE = 0
_CPU = 1
_DTYPES = {
    0: "float32",
    1: "float64",
    2: "float16",
    3: "uint8",
    4: "int32",
    5: "int8",
    6: "int64",
    7: "bool",
    8: "int16",
}


def read_params(path: str | Path) -> dict[str, Constant]:
    """Find the arrays of a ``.params`` file; they are read when they are asked for.

    Returns name -> :class:`~bertrt.plan.weights.Constant` in file order. The prefixes ``arg:`` and
    ``aux:`` of exported files are stripped.

    Raises MissingFileError if there is no such file, UnsupportedModelError for a sparse array and
    ModelFormatError for every other deviation from the format.
    """
    path = Path(path)
    cursor = _Cursor(path, File(path))
    magic, _reserved, count = cursor.unpack("<QQQ", "the header")
    if magic != _LIST_MAGIC:
        raise cursor.error(
            f"magic number 0x{magic:x}, expected 0x{_LIST_MAGIC:x}: not a .params file"
        )
    # Every array takes 8 bytes at least; a count beyond that is damage, found before looping.
    if count > len(cursor.data) // 8:
        raise cursor.error(f"{count} arrays announced in a file of {len(cursor.data)} bytes")
    arrays = [_read_array(cursor, index) for index in range(count)]
    (names_count,) = cursor.unpack("<Q", "the number of names")
    if names_count != count:
        raise cursor.error(f"{names_count} names for {count} arrays")
    constants: dict[str, Constant] = {}
    for index, stored in enumerate(arrays):
        (length,) = cursor.unpack("<Q", f"the length of name {index}")
        raw = bytes(cursor.take(length, f"name {index}"))
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise cursor.error(f"name {index} is not UTF-8: {raw[:40]!r}") from None
        name = name.removeprefix("arg:").removeprefix("aux:")
        if not name or name in constants:
            raise cursor.error(f"name {index} is {name!r}: empty, or there twice")
        constants[name] = Constant.of(name, stored)
    if cursor.position != len(cursor.data):
        raise cursor.error(f"{len(cursor.data) - cursor.position} bytes after the last name")
    return constants


class _Cursor:
    """A position in the bytes of a file."""

    def __init__(self, path: Path, data: File) -> None:
        self.path, self.data, self.position = path, data, 0

    def error(self, message: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: {message} (near byte {self.position})")

    def skip(self, size: int, what: str) -> int:
        """Go on by `size` bytes; returns where they begin."""
        left = len(self.data) - self.position
        if size > left:
            raise self.error(f"truncated or damaged: {what} needs {size} bytes, {left} are left")
        self.position += size
        return self.position - size

    def take(self, size: int, what: str) -> np.ndarray:
        begin = self.skip(size, what)
        return self.data[begin : self.position]

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        return struct.unpack(layout, bytes(self.take(struct.calcsize(layout), what)))


def _read_array(cursor: _Cursor, index: int) -> Stored:
    what = f"array {index}"
    (magic,) = cursor.unpack("<I", what)
    version = _VERSIONS.get(magic)
    if version is None:
        raise cursor.error(f"{what} has the unknown magic number 0x{magic:x}")
    if version > 1:
        (storage,) = cursor.unpack("<i", what)
        if storage in (1, 2):
            raise UnsupportedModelError(
                f"{cursor.path}: {what} is sparse (storage type {storage}); "
                "convert it with tostype('default') before saving"
            )
        if storage != _DENSE:
            raise cursor.error(f"{what} has the unknown storage type {storage}")
    (rank,) = cursor.unpack("<i", what)
    lowest = 0 if version == 3 else 1
    if not lowest <= rank <= MOST_AXES:
        raise cursor.error(f"{what} has rank {rank}: no array, or a damaged one")
    shape = cursor.unpack(f"<{rank}q", f"the shape of {what}")
    if not fits(shape):
        raise cursor.error(f"{what} has shape {shape}")
    _device, _device_id, flag = cursor.unpack("<iii", what)
    if flag not in _DTYPES:
        raise cursor.error(f"{what} has the unknown element type {flag}")
    size = prod(shape) * np.dtype(_DTYPES[flag]).itemsize
    offset = cursor.skip(size, f"the data of {what}, shape {shape},")
    return cursor.data.stored(offset, _DTYPES[flag], shape)


def write_params(
    path: str | Path, arrays: Mapping[str, np.ndarray], *, prefix: str = "arg:"
) -> None:
    """Write arrays byte for byte as MXNet does, but that a full disk is an error, a WriteError.

    Args:
        path: the file.
        arrays: by name.
        prefix: of the names: "arg:" of an exported model's, "" of ``save_parameters``.
    """
    flags = {dtype: flag for flag, dtype in _DTYPES.items()}
    with writing_file(path) as file:
        file.write(struct.pack("<QQQ", _LIST_MAGIC, 0, len(arrays)))
        for array in arrays.values():
            head = struct.pack("<Iii", _V2, _DENSE, array.ndim)
            shape = struct.pack(f"<{array.ndim}q", *array.shape)
            file.write(head + shape + struct.pack("<iii", _CPU, 0, flags[array.dtype.name]))
            file.write(np.ascontiguousarray(array).tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            raw = f"{prefix}{name}".encode()
            file.write(struct.pack("<Q", len(raw)) + raw)
