"""Files: mapped into memory, and JSON read from them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingFileError, ModelFormatError

__all__ = ["map_file", "read_json", "read_object", "view"]


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file as a read-only memory-mapped uint8 array.

    Raises MissingFileError if there is no such file, ModelFormatError if it cannot be mapped.
    """
    try:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file")
        return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except MissingFileError:
        raise
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        raise ModelFormatError(f"{path}: cannot be mapped into memory: {error}") from None


def view(data: np.ndarray, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of a mapped file as an array: little-endian, row-major, read-only.

    A view wherever ``offset`` allows it; where it is not a multiple of the element size, a copy,
    because compiled code may rely on aligned elements. The range must lie inside ``data``.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    array = data[offset : offset + prod(shape) * kind.itemsize].view(kind).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is not UTF-8 or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. MissingFileError and ModelFormatError say what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content
