"""What `predict` is given, checked: texts, pairs of texts, texts in words."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError

__all__ = ["Words", "check_text", "check_texts", "check_words", "split_words"]


def check_texts(batch: Any) -> tuple[list[Any], bool]:
    """What `predict` takes, checked: texts, or pairs of texts.

    Args:
        batch: a list of str, a list of (str, str) tuples, one str, or one (str, str) tuple. A list
            of two str is a batch of two; a tuple is always one pair.

    Returns:
        The batch as a list of str or of (str, str), and whether it was a single input.

    Raises:
        InvalidTypeError: anything else, a None in it, or texts and pairs together.
        InvalidInputError: an empty batch, an empty text, a NUL character or a lone surrogate. The
            message names the index.
    """
    single = isinstance(batch, str) or _is_pair(batch)
    if single:
        batch = [batch]
    elif not isinstance(batch, list):
        raise InvalidTypeError(
            f"batch is {_describe(batch)}; expected a list of str, a list of (str, str), "
            "or one of either (use list(...) for other sequences)"
        )
    if not batch:
        raise InvalidInputError("the batch is empty")
    pairs = not isinstance(batch[0], str)
    for i, text in enumerate(batch):
        if not pairs:
            # type(...) is str first, because it is nearly always true and much the cheapest.
            if type(text) is not str and not isinstance(text, str):
                raise _bad_item(i, text, pairs)
            check_text(f"batch[{i}]", text, may_be_empty=False)
        else:
            if not _is_pair(text):
                raise _bad_item(i, text, pairs)
            check_text(f"batch[{i}][0]", text[0], may_be_empty=False)
            check_text(f"batch[{i}][1]", text[1], may_be_empty=True)
    return list(batch), single


@dataclass(frozen=True, eq=False)
class Words:
    """A text in words.

    Attributes:
        text: the text.
        words: its words.
        spans: where each of them stands in the text, in characters.
    """

    text: str
    words: list[str]
    spans: list[tuple[int, int]]


def split_words(text: str) -> Words:
    """The words of a text, apart by white space as `str.isspace` has it."""
    found = list(re.finditer(r"\S+", text))
    return Words(text, [match[0] for match in found], [match.span() for match in found])


def check_words(batch: Any) -> tuple[list[Words], bool]:
    """What `predict` takes where it is about words, checked.

    Args:
        batch: a list of texts, of which each is a str, split at white space, or a list of words;
            or one str.

    Returns:
        The texts in words, those of a list joined by blanks; and whether it was a single input.

    Raises:
        InvalidTypeError, InvalidInputError: as `check_texts`; also a text without words, and an
            empty word.
    """
    single = isinstance(batch, str)
    if single:
        batch = [batch]
    elif not isinstance(batch, list):
        raise InvalidTypeError(
            f"batch is {_describe(batch)}; expected a list of texts, each a str or a list of "
            "words, or one str"
        )
    if not batch:
        raise InvalidInputError("the batch is empty")
    texts = []
    for i, item in enumerate(batch):
        if isinstance(item, str):
            check_text(f"batch[{i}]", item, may_be_empty=False)
            words = split_words(item)
        elif isinstance(item, list) and all(isinstance(word, str) for word in item):
            for index, word in enumerate(item):
                check_text(f"batch[{i}][{index}]", word, may_be_empty=False)
            starts = [0, *itertools.accumulate(len(word) + 1 for word in item)]
            spans = [(start, start + len(word)) for start, word in zip(starts, item, strict=False)]
            words = Words(" ".join(item), list(item), spans)
        else:
            raise InvalidTypeError(
                f"batch[{i}] is {_describe(item)}; expected a str or a list of words"
            )
        if not words.words:
            raise InvalidInputError(f"batch[{i}] holds no word")
        texts.append(words)
    return texts, single


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], str)
    )


def _bad_item(index: int, item: Any, pairs: bool) -> InvalidTypeError:
    if isinstance(item, str):
        found = "a str among pairs"
    elif _is_pair(item):
        found = "a pair among single texts"
    else:
        found = _describe(item)
    if index == 0:
        expected = "a str or a tuple (str, str)"
    else:
        expected = "a tuple (str, str)" if pairs else "a str"
    return InvalidTypeError(f"batch[{index}] is {found}; expected {expected}")


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    found = f"a {type(value).__name__}"
    if isinstance(value, tuple | list):
        found += f" of {', '.join(type(part).__name__ for part in value[:3]) or 'nothing'}"
    return found


def check_text(name: str, text: str, *, may_be_empty: bool) -> None:
    """Check a text; `name` is what messages call it.

    Raises:
        InvalidInputError: it is empty, and may not be; it holds a NUL character, or a lone
            surrogate.
    """
    if not text and not may_be_empty:
        raise InvalidInputError(f"{name} is an empty string")
    if "\0" in text:
        raise InvalidInputError(f"{name} holds a NUL character at position {text.index(chr(0))}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{name} holds a lone surrogate (U+{ord(text[error.start]):04X}) at position "
                f"{error.start}; it is no valid Unicode text"
            ) from None
