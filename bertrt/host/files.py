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


# Lists and objects of a JSON file: far more than a tokenizer of a million pieces has, and few
# enough for memory.
_MOST_CONTAINERS = 8 << 20


def read_json(path: Path, *, limit: int | None = None) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        limit: the most bytes that it may have; any number if left out.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is too large, not UTF-8 or not JSON.
    """
    try:
        if limit is not None and (size := path.stat().st_size) > limit:
            raise ModelFormatError(f"{path} has {size} bytes, and at most {limit} are read")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    if limit is not None and text.count("[") + text.count("{") > _MOST_CONTAINERS:
        raise ModelFormatError(f"{path} has more than {_MOST_CONTAINERS} lists and objects")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {error}") from error


def read_object(path: Path, *, limit: int | None = None) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. MissingFileError and ModelFormatError say
    what is wrong."""
    content = read_json(path, limit=limit)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content
