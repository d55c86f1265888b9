"""Files: what they may be, and JSON read from them."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from bertrt.errors import MissingFileError, ModelFormatError

__all__ = ["check_size", "read_json", "read_object"]


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
