"""A bundle's golden outputs: batches, and what the source framework answered."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.host.archives import places_of, read_directory
from bertrt.host.files import fits
from bertrt.host.stored import File
from bertrt.host.writing import write_bytes
from bertrt.plan.steps import INPUTS, STACKED, output_kind

__all__ = ["GoldenCase", "read_golden", "write_golden"]

# numpy's writer makes headers of 128 bytes for any array of numbers.
_LONGEST_HEADER = 1 << 10


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A batch and the answer that the source framework gave for it.

    Attributes:
        inputs: integer arrays by name: ``token_ids`` and ``token_types`` of shape (batch, seq),
            ``valid_length`` (batch,), and ``masked_positions`` (batch, masked) where the model has
            a decoder.
        outputs: float32 arrays by the names of `Engine.run`, and shaped as it returns them.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def write_golden(path: str | os.PathLike[str], cases: Sequence[GoldenCase]) -> None:
    """Write `cases` as an ``.npz`` of arrays ``<case>/inputs/<name>``, ``<case>/outputs/<name>``.

    Raises:
        InvalidInputError: there are no cases.
        WriteError: the system refuses the file.
    """
    if not cases:
        raise InvalidInputError("there are no golden cases to write")
    arrays = {}
    for index, case in enumerate(cases):
        for part in ("inputs", "outputs"):
            for name, array in getattr(case, part).items():
                arrays[f"{index}/{part}/{name}"] = array
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    write_bytes(path, archive.getvalue())


def read_golden(path: str | os.PathLike[str]) -> list[GoldenCase]:
    """Read what :func:`write_golden` wrote. Takes as much memory as the file is long, twice while
    it reads: entries are not compressed, and an array has the size that its entry has.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is damaged, or its arrays are not named or shaped as they
            should be.
    """
    path = Path(path)
    data = File(path)
    cases: dict[int, GoldenCase] = {}
    for name, place in places_of(path, data, read_directory(path)).items():
        key = name.removesuffix(".npy")
        match = re.fullmatch(r"(\d{1,6})/(inputs|outputs)/(\w+)", key)
        if match is None or not (match[3] in (*INPUTS, *STACKED) or output_kind(match[3])):
            raise ModelFormatError(f"{path} holds an array of unknown name: {key[:80]!r}")
        case = cases.setdefault(int(match[1]), GoldenCase({}, {}))
        entry = data[place.offset : place.offset + place.size]
        getattr(case, match[2])[match[3]] = _read_array(f"{path}: the array {key}", entry)
    if sorted(cases) != list(range(len(cases))) or not cases:
        raise ModelFormatError(f"{path}: expected cases 0, 1, ..., found {sorted(cases)}")
    for index, case in sorted(cases.items()):
        _check_golden_case(case, f"{path}, case {index}")
    return [cases[index] for index in range(len(cases))]


def _read_array(where: str, data: np.ndarray) -> np.ndarray:
    """The array of an ``.npy`` file with these bytes: of numbers, as long as its header says."""
    begin = data[:_LONGEST_HEADER].tobytes()
    file = io.BytesIO(begin)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read(file)
    # numpy reads the header as Python: whatever tokens, syntax and types can be wrong is raised.
    except Exception as error:
        raise ModelFormatError(f"{where} is not readable: {error}") from None
    if dtype.kind not in "iuf" or not fits(shape):
        raise ModelFormatError(f"{where} is {dtype} of shape {shape}, expected numbers")
    content = data[file.tell() :]
    if len(content) != prod(shape) * dtype.itemsize:
        raise ModelFormatError(
            f"{where} is {dtype} of shape {shape}, which takes {prod(shape) * dtype.itemsize} "
            f"bytes, and has {len(content)}"
        )
    array = np.frombuffer(content.tobytes(), dtype).reshape(shape, order="F" if by_columns else "C")
    return array.astype(dtype.newbyteorder("="))


def _check_golden_case(case: GoldenCase, where: str) -> None:
    missing = {"token_ids", "token_types", "valid_length"} - case.inputs.keys()
    if missing or not case.outputs:
        raise ModelFormatError(f"{where}: missing {', '.join(sorted(missing)) or 'outputs'}")
    shape = case.inputs["token_ids"].shape
    if len(shape) != 2:
        raise ModelFormatError(f"{where}: token_ids should be (batch, seq), found {shape}")
    for name, array in case.inputs.items():
        expected = {"token_ids": shape, "token_types": shape, "valid_length": shape[:1]}.get(name)
        fits = array.shape[:1] == shape[:1] if expected is None else array.shape == expected
        if not fits or array.dtype.kind not in "iu":
            raise ModelFormatError(
                f"{where}: {name} should be integers of shape {expected or '(batch, masked)'}, "
                f"found {array.dtype} {array.shape}"
            )
    for name, array in case.outputs.items():
        batch = array.shape[1:2] if name in STACKED else array.shape[:1]
        if array.dtype != np.float32 or batch != shape[:1]:
            raise ModelFormatError(
                f"{where}: {name} should be float32 for {shape[0]} sequences, "
                f"found {array.dtype} {array.shape}"
            )
