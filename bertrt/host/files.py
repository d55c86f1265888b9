"""Files: mapped into memory, and JSON read from them."""

from __future__ import annotations

import json
import re
import stat
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
_LARGEST_JSON = 128 << 20
_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def check_size(path: Path, limit: int) -> None:
    """Refuse, with a ModelFormatError, what is no plain file, or has more bytes than `limit`:
    nothing of it is read. MissingFileError where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelFormatError(f"{path} should be a plain file")
    if found.st_size > limit:
        raise ModelFormatError(f"{path} has {found.st_size} bytes, and at most {limit} are read")


def read_json(path: Path, *, limit: int = _LARGEST_JSON) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        MissingFileError: there is no such file.
        ModelFormatError: the file is too large, no plain file, not UTF-8 or not JSON, or holds half
            a surrogate.
    """
    check_size(path, limit)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text: {error}") from error
    if text.count("[") + text.count("{") > _MOST_CONTAINERS:
        raise ModelFormatError(f"{path} has more than {_MOST_CONTAINERS} lists and objects")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {error}") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ModelFormatError(f"{path} holds half a surrogate, which is no text") from None
    return content


def read_object(path: Path, *, limit: int = _LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. MissingFileError and ModelFormatError say
    what is wrong."""
    content = read_json(path, limit=limit)
    if not isinstance(content, dict):
        raise ModelFormatError(f"{path} should hold a JSON object")
    return content
