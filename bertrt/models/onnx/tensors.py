"""The tensors of an ONNX file: constants, read from where they lie."""

from __future__ import annotations

from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import fits
from bertrt.host.stored import File
from bertrt.plan.weights import Constant

__all__ = ["Tensors"]

_MOST_COPIED = 4


class Tensors:
    """The tensors of the file at `path`, which is `data`. What a name was read as is kept,
    so that reading a file again at other sizes costs nothing.

    Attributes:
        stored: constants by name; those that are made of tensors have their place here, too.
    """

    def __init__(self, path: Path, data: File, onnx: Any) -> None:
        self.path, self.onnx = path, onnx
        self.stored: dict[str, Constant] = {}
        self.files = {path: data}
        self.copied = 0  # bytes of external tensors that are
        self.found_at = 0  # where the last inline tensor was found in the file

    def constant(self, name: str, tensor: Any, few: int) -> Constant:
        """A tensor by its name; floats of more than `few` elements are looked up in the file.

        Raises ModelFormatError for a broken one, UnsupportedModelError for its element type.
        """
        if name not in self.stored:
            self.stored[name] = self._constant(name, tensor, few)
        return self.stored[name]

    def array(self, what: str, tensor: Any) -> np.ndarray:
        """The elements of a tensor that is no weight. Raises what `constant` raises."""
        return self._constant(what, tensor, few=tensor.ByteSize()).array

    def check_text(self, what: str, *texts: object) -> None:
        """Protobuf hands out strings that are not UTF-8 as bytes."""
        for text in texts:
            if not isinstance(text, str):
                raise ModelFormatError(f"{self.path}: {what}: the name {text!r} is not UTF-8")

    def dtype(self, code: int, what: str) -> str:
        """An element type by its number in the format."""
        types = self.onnx.TensorProto
        names = {
            types.FLOAT: "float32",
            types.FLOAT16: "float16",
            types.DOUBLE: "float64",
            types.INT32: "int32",
            types.INT64: "int64",
            types.BOOL: "bool",
            types.UINT8: "uint8",
            types.INT8: "int8",
        }
        if code not in names:
            found = types.DataType.Name(code) if code in types.DataType.values() else code
            raise UnsupportedModelError(
                f"{self.path}: {what} has element type {found}, supported are "
                f"{', '.join(names.values())}"
            )
        return names[code]

    def _constant(self, name: str, tensor: Any, few: int) -> Constant:
        what = f"tensor {name!r}"
        entries = (text for entry in tensor.external_data for text in (entry.key, entry.value))
        self.check_text(what, name, *entries)
        dtype = self.dtype(tensor.data_type, what)
        shape = tuple(tensor.dims)
        if not fits(shape):
            raise ModelFormatError(f"{self.path}: {what} has shape {shape}")
        size = prod(shape) * np.dtype(dtype).itemsize
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            constant = self._external(name, tensor, dtype, shape, size)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
            if len(raw) != size:
                raise ModelFormatError(
                    f"{self.path}: {what} of shape {shape} has {len(raw)} bytes, expected {size}"
                )
            if dtype == "float32" and prod(shape) > few:
                data = self.files[self.path]
                constant = Constant.of(name, data.stored(self._find(raw), dtype, shape))
            else:  # nobody asks where it lies
                kind = np.dtype(dtype).newbyteorder("<")
                constant = Constant(name, np.frombuffer(raw, kind).reshape(shape))
        else:
            constant = Constant(name, self._typed(tensor, what, dtype, shape))
        kind = constant.dtype
        if kind == np.float16 or (kind == np.float64 and prod(shape) <= few):
            array = constant.array.astype(np.float32)
            array.flags.writeable = False
            constant = Constant(name, array)
        return constant

    def _find(self, raw: bytes) -> int:
        """Where these bytes lie in the file: tensors come in order, so this is one pass in all."""
        data = self.files[self.path]
        for start in (self.found_at, 0):
            position, window = start, 1 << 14  # most are right behind the last
            while position < len(data):
                at = data[position : position + window + len(raw)].tobytes().find(raw)
                if at >= 0:
                    self.found_at = position + at
                    return self.found_at
                position, window = position + window, min(2 * window, 1 << 22)
        raise ModelFormatError(f"{self.path}: the bytes of a tensor are not in the file")

    def _external(
        self, name: str, tensor: Any, dtype: str, shape: tuple[int, ...], size: int
    ) -> Constant:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        parts = PurePosixPath(location)
        where = f"{self.path}: external data of tensor {name!r}"
        if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location:
            raise ModelFormatError(f"{where} are in {location!r}, which leaves the directory")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(size)))
        except ValueError:
            raise ModelFormatError(f"{where}: bad offset or length in {entries}") from None
        file = self.path.parent / location
        if file not in self.files:
            self.files[file] = File(file)
        data = self.files[file]
        if length != size or offset < 0 or offset + size > len(data):
            raise ModelFormatError(
                f"{where}: bytes {offset} to {offset + length} of {len(data)}, shape {shape} "
                f"needs {size}"
            )
        if dtype in ("float16", "float64"):  # will be copied; tensors may share what lies there
            self.copied += size
            if self.copied > _MOST_COPIED * sum(map(len, self.files.values())):
                raise UnsupportedModelError(
                    f"{where}: tensors share or repeat their elements; as float32 they would take "
                    f"more than {_MOST_COPIED} times the files' size"
                )
        return Constant.of(name, data.stored(offset, dtype, shape))

    def _typed(self, tensor: Any, what: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        fields = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
        values = getattr(tensor, fields.get(dtype, "int32_data"))
        if len(values) != prod(shape):
            raise ModelFormatError(
                f"{self.path}: {what} of shape {shape} has {len(values)} elements"
            )
        if dtype == "float16":  # stored as the bits of each element
            bits = np.fromiter(values, np.int32, len(values)) & 0xFFFF
            array = bits.astype(np.uint16).view(np.float16)
        elif dtype in ("int8", "uint8"):  # in a field of 32 bits
            wide = np.fromiter(values, np.int32, len(values))
            array = wide.astype(dtype)
            if not np.array_equal(array, wide):
                raise ModelFormatError(f"{self.path}: {what} has elements that no {dtype} holds")
        else:
            array = np.fromiter(values, dtype, len(values))
        array = array.reshape(shape)
        array.flags.writeable = False
        return array
