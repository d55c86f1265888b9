"""Arrays of weights: where they lie, how they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.host.stored import File, Stored
from bertrt.plan.fields import LIMIT, check_keys, read_integer, read_table, read_text

__all__ = [
    "DTYPES",
    "STORED",
    "Constant",
    "Weights",
    "dtype_name",
    "locate_weights",
    "reference_to",
]


@dataclass(frozen=True, eq=False)
class Constant:
    """A parameter or a literal of the graph.

    ``array`` is read-only. Usually it lies in a file, and is read when it is asked for; then
    ``file`` and ``offset`` say where its bytes are (row-major, little-endian). Both are None for a
    literal.
    """

    name: str
    stored: np.ndarray | Stored
    file: Path | None = None
    offset: int | None = None

    @classmethod
    def of(cls, name: str, stored: Stored) -> Constant:
        """The constant that is stored there."""
        return cls(name, stored, stored.file.path, stored.offset)

    @property
    def array(self) -> np.ndarray:
        """Its elements. ModelFormatError where their file has been changed before they are read."""
        return self.stored if isinstance(self.stored, np.ndarray) else self.stored.array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's, without reading it."""
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's, without reading it."""
        return self.stored.dtype

    def check_with(self, check: Callable[[np.ndarray], object]) -> None:
        """Have `check` raise what it finds in the elements: now, or, of what lies in a file,
        whenever they have been read."""
        if isinstance(self.stored, Stored):
            self.stored.check = check
        else:
            check(self.stored)

    def let_go(self) -> None:
        """Hold the array no longer where it can be read again, if it has more than one axis."""
        if isinstance(self.stored, Stored):
            self.stored.let_go()

    @property
    def row_major(self) -> bool:
        """Whether the elements lie row after row, as they do in every file."""
        return not isinstance(self.stored, np.ndarray) or self.stored.flags.c_contiguous

    def part(self, name: str, begin: int, shape: tuple[int, ...]) -> Constant:
        """The elements from the one numbered `begin` on, as a constant of another shape."""
        if isinstance(self.stored, Stored):
            return Constant.of(name, self.stored.part(begin, shape))
        return Constant(name, self.stored.reshape(-1)[begin:][: prod(shape)].reshape(shape))

    def rows(self, name: str, begin: int, end: int) -> Constant:
        """The rows from `begin` to `end` of the first axis, as a constant."""
        row = self.shape[1:]
        return self.part(name, begin * prod(row), (end - begin, *row))


# What a fused step reads beside its inputs: role -> names of constants.
Weights = dict[str, tuple[str, ...]]
# How weights are stored; numpy has no bfloat16 and no e4m3, so their bits are uint16 and uint8. A
# matrix that is not
# float32 belongs to a step that states the precision.
DTYPES = {"float32": "float32", "bfloat16": "uint16", "int8": "int8", "float8_e4m3": "uint8"}
STORED = {"uint16": "bf16", "int8": "int8", "uint8": "fp8"}


def dtype_name(array: np.ndarray | Constant) -> str:
    """How the JSON form calls an array's elements; "" where a plan has no such weights."""
    return next((name for name, dtype in DTYPES.items() if array.dtype == dtype), "")


def reference_to(constant: Constant, directory: Path) -> dict[str, Any]:
    """Where a weight lies, in JSON: file, offset, dtype and shape.

    Raises InvalidInputError for one that lies in no file below `directory`.
    """
    if constant.file is None or constant.offset is None:
        raise InvalidInputError(f"weight {constant.name!r} does not lie in a file")
    try:
        inside = constant.file.resolve().relative_to(directory.resolve())
    except ValueError:
        raise InvalidInputError(
            f"weight {constant.name!r} lies in {constant.file}, not below {directory}"
        ) from None
    return {
        "file": inside.as_posix(),
        "offset": constant.offset,
        "dtype": dtype_name(constant),
        "shape": list(constant.shape),
    }


def locate_weights(
    table: dict[str, Any], directory: Path, opened: Mapping[str, File]
) -> dict[str, Constant]:
    """The weights that `reference_to` described, by name, to be read from files of `directory`;
    those that are `opened` already are so by name.

    Raises ModelFormatError for a reference that is broken, leaves the directory or goes beyond its
    file; MissingFileError where the file is not there.
    """
    files = dict(opened)
    weights = {}
    for name, raw in table.items():
        where = f"weights.{name}"
        reference = read_table(raw, where)
        check_keys(reference, ("file", "offset", "dtype", "shape"), where)
        file = read_text(reference["file"], f"{where}.file")
        parts = PurePosixPath(file)
        if parts.is_absolute() or ".." in parts.parts or "\\" in file:
            raise ModelFormatError(f"{where}.file is {file!r}, which leaves the directory")
        dtype = DTYPES.get(read_text(reference["dtype"], f"{where}.dtype"))
        if dtype is None:
            raise ModelFormatError(
                f"{where}.dtype is {reference['dtype']!r}, expected one of {list(DTYPES)}"
            )
        shape = reference["shape"]
        if not isinstance(shape, list) or not 1 <= len(shape) <= 2:
            raise ModelFormatError(f"{where}.shape is {shape!r}, expected one or two extents")
        for extent in shape:
            read_integer(extent, f"{where}.shape", 1, LIMIT)
        if file not in files:
            files[file] = File(directory / file)
        data = files[file]
        offset = read_integer(reference["offset"], f"{where}.offset", 0, len(data) + 1)
        end = offset + np.dtype(dtype).itemsize * prod(shape)
        if end > len(data):
            raise ModelFormatError(
                f"{where} ends at byte {end}, {file} has {len(data)} bytes: truncated?"
            )
        weights[name] = Constant.of(name, data.stored(offset, dtype, shape))
    return weights
