"""GluonNLP's basic tokenizer: white space, control characters, Chinese characters, case, accents,
punctuation. The rules are GluonNLP's, over Python's own Unicode tables, which are the tables that
GluonNLP uses.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["basic_tokenize"]


class _Table(dict[int, int | str | None]):
    """A str.translate table that asks a rule for every character once."""

    def __init__(self, rule: Callable[[int], int | str | None]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, codepoint: int) -> int | str | None:
        value = self[codepoint] = self._rule(codepoint)
        return value


def _clean(codepoint: int) -> int | str | None:
    """Drops control characters, makes white space one kind, puts spaces around Chinese."""
    char = chr(codepoint)
    category = unicodedata.category(char)
    if char in " \t\n\r" or category == "Zs":
        return " "
    if category in ("Cc", "Cf") or codepoint == 0xFFFD:
        return None
    if _is_chinese(codepoint):
        return f" {char} "
    return codepoint


def _split(codepoint: int) -> int | str | None:
    """Drops accents, puts spaces around punctuation, and makes every character at which str.split
    would split a space."""
    char = chr(codepoint)
    category = unicodedata.category(char)
    if category == "Mn":
        return None
    if char.isspace():
        return " "
    if category.startswith("P") or _is_ascii_symbol(codepoint):
        return f" {char} "
    return codepoint


def _is_chinese(codepoint: int) -> bool:
    return (
        0x4E00 <= codepoint <= 0x9FFF
        or 0x3400 <= codepoint <= 0x4DBF
        or 0x20000 <= codepoint <= 0x2A6DF
        or 0x2A700 <= codepoint <= 0x2B73F
        or 0x2B740 <= codepoint <= 0x2B81F
        or 0x2B820 <= codepoint <= 0x2CEAF
        or 0xF900 <= codepoint <= 0xFAFF
        or 0x2F800 <= codepoint <= 0x2FA1F
    )


def _is_ascii_symbol(codepoint: int) -> bool:
    # "$" or "^" is no punctuation to Unicode, and is to BERT.
    return 33 <= codepoint <= 126 and not chr(codepoint).isalnum()


_CLEAN = _Table(_clean)


_SPLIT = _Table(_split)


def basic_tokenize(text: str, *, lower: bool) -> str:
    """GluonNLP's basic tokenizer; the words come back in one string, apart by spaces.

    Lower-casing is Python's, of the whole text and before the decomposition (so a final sigma
    stays final); the decomposition (NFD) and the dropping of accents happen to cased text too.
    """
    text = text.translate(_CLEAN)
    if lower:
        text = text.lower()
    return unicodedata.normalize("NFD", text).translate(_SPLIT)
