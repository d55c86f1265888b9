"""Values of a plan in JSON, read and checked."""

from __future__ import annotations

from typing import Any

from bertrt.errors import ModelFormatError

__all__ = ["LIMIT", "check_keys", "read_integer", "read_names", "read_table", "read_text"]

# Extents and counts stay below it, so that no product of two overflows in an engine; csrc/plan says
# the same.
LIMIT = 1 << 28
_LONGEST_NAME = 1024


def read_table(value: Any, where: str) -> dict[str, Any]:
    """A JSON object; `where` is what the messages of all these call the value.

    All of them raise ModelFormatError for anything else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ModelFormatError(f"{where} is {type(value).__name__}, expected a table")
    return value


def check_keys(table: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Check that an object has these keys and no others."""
    missing, unknown = set(keys) - set(table), set(table) - set(keys)
    if missing or unknown:
        raise ModelFormatError(
            f"{where}: missing entries {sorted(missing)}, unknown entries {sorted(unknown)}"
        )


def read_text(value: Any, where: str) -> str:
    """A name, neither empty nor endless, of characters that UTF-8 has."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or _halved(value):
        raise ModelFormatError(f"{where} is {str(value)[:80]!r}, expected a name")
    return value


def _halved(text: str) -> bool:
    """Whether there is half a surrogate pair in it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def read_integer(value: Any, where: str, low: int, limit: int) -> int:
    """A whole number from `low` up to `limit`, which is not one any more."""
    if type(value) is not int or not low <= value < limit:
        raise ModelFormatError(f"{where} is {value!r}, expected an integer in [{low}, {limit})")
    return value


def read_names(value: Any, where: str) -> tuple[str, ...]:
    """A list of names."""
    if not isinstance(value, list):
        raise ModelFormatError(f"{where} is {value!r}, expected a list of names")
    return tuple(read_text(name, where) for name in value)
