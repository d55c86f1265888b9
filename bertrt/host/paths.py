"""Paths that users pass in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError, MissingFileError

__all__ = ["check_path"]


def check_path(name: str, value: Any) -> Path:
    """The argument `name` as an absolute path, made so now: the working directory may change.

    Raises:
        InvalidTypeError: neither a str nor an os.PathLike of one.
        InvalidInputError: empty, or with a character that no file's name can have.
        MissingFileError: it begins at the working directory, and that has been removed.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InvalidTypeError(
            f"{name} is a {type(value).__name__}; expected a str or an os.PathLike of one"
        )
    try:
        good = text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate
        good = False
    if not good:
        raise InvalidInputError(f"{name} is {text!r}, which cannot be the path of a file")
    try:
        return Path(os.path.abspath(text))
    except FileNotFoundError:
        raise MissingFileError(
            f"{name} is {text!r}, in the working directory, which has been removed; give a path "
            "from the root"
        ) from None
