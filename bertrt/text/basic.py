"""GluonNLP's basic tokenizer: white space, control characters, Chinese characters, case, accents,
punctuation. The rules are GluonNLP's, over Python's own Unicode tables, which are the tables that
GluonNLP uses.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["basic_spans", "basic_tokenize", "is_chinese", "is_punctuation"]


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
    if is_chinese(char):
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
    if is_punctuation(char):
        return f" {char} "
    return codepoint


def is_punctuation(char: str) -> bool:
    """Whether BERT takes a character for punctuation."""
    # "$" or "^" is no punctuation to Unicode, and is to BERT.
    return unicodedata.category(char).startswith("P") or (
        33 <= ord(char) <= 126 and not char.isalnum()
    )


def is_chinese(char: str) -> bool:
    """Whether BERT takes a character for Chinese, and so for a word."""
    codepoint = ord(char)
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


def basic_spans(text: str, *, lower: bool) -> list[tuple[int, int]]:
    """Where the words of `basic_tokenize` stand in `text`, in characters: what is between white
    space, with punctuation and Chinese characters words of their own. A character that is dropped
    parts nothing; an accent belongs to the word that it stands on.
    """
    spans: list[tuple[int, int]] = []
    inside = False
    for place, char in enumerate(text):
        made = basic_tokenize(char, lower=lower)
        if not made:
            if inside and unicodedata.category(char) == "Mn":
                spans[-1] = spans[-1][0], place + 1
        elif " " in made:
            inside = False
            if made.strip():
                spans.append((place, place + 1))
        elif inside:
            spans[-1] = spans[-1][0], place + 1
        else:
            inside = True
            spans.append((place, place + 1))
    return spans
