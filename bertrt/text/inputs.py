"""What `predict` is given, checked: texts, pairs of texts, texts in words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError

__all__ = [
    "Words",
    "check_text",
    "check_texts",
    "check_words",
    "join_words",
    "raise_errors",
    "split_words",
]

# Of the errors of a batch one message tells so many in full, each up to so many characters, and
# so many places, or runs of them, of the others.
_ERRORS_TOLD, _MESSAGE, _PLACES_TOLD = 3, 300, 50


def check_texts(
    batch: Any, *, pair: bool | None = None, what: str = "the task"
) -> tuple[list[Any], bool]:
    """What `predict` takes, each input checked by itself: texts, or pairs of texts.

    Args:
        batch: a list of str, a list of (str, str) tuples, one str, or one (str, str) tuple. A list
            of two str is a batch of two; a tuple is always one pair.
        pair: whether pairs are wanted, or single texts; None: either, as the first of them is.
        what: what wants them, in messages.

    Returns:
        A list as long as the batch, of str or of (str, str); in the place of what is no such text,
        holds a NUL character or a lone surrogate, the InvalidTypeError or InvalidInputError that
        says so with its index. And whether it was a single input.

    Raises:
        InvalidTypeError: the batch is none.
        InvalidInputError: it is empty.
    """
    single = isinstance(batch, str) or _is_pair(batch)
    items = _as_list(batch, single, "a list of str, a list of (str, str), or one of either")
    kinds = (_is_pair(item) for item in items if isinstance(item, str) or _is_pair(item))
    pairs = pair if pair is not None else next(kinds, None)

    def check(index: int, item: Any) -> Any:
        # type(...) is str first, because it is nearly always true and much the cheapest.
        if not pairs and (type(item) is str or isinstance(item, str)):
            check_text(f"batch[{index}]", item)
        elif pairs is not False and _is_pair(item):
            for side, text in enumerate(item):
                check_text(f"batch[{index}][{side}]", text)
        elif pair is not None and (isinstance(item, str) or _is_pair(item)):
            found, wanted = ("a text", "a pair") if pair else ("a pair", "a single text")
            raise InvalidInputError(f"batch[{index}] is {found}; {what} takes {wanted}")
        else:
            raise _bad_item(index, item, pairs)
        return item

    return [_attempt(check, index, item) for index, item in enumerate(items)], single


def raise_errors(items: Sequence[Any]) -> None:
    """Raise the errors among `items` as one: the only one as it is, of several the first few in
    full and the places of all, as far as they go into a message that can be read."""
    bad = {index: item for index, item in enumerate(items) if isinstance(item, BertrtError)}
    if not bad:
        return
    first, *others = bad.values()
    if not others:
        raise first
    told = dict(itertools.islice(bad.items(), _ERRORS_TOLD))
    places: list[list[int]] = []
    for index in bad:
        if index in told:
            continue
        if places and places[-1][-1] == index - 1:
            places[-1][1:] = [index]
        else:
            places.append([index])
    shown = [" to ".join(f"batch[{index}]" for index in ends) for ends in places[:_PLACES_TOLD]]
    message = f"{len(bad)} of {len(items)} inputs cannot be answered: " + "; ".join(
        _cut(str(error)) for error in told.values()
    )
    if shown:
        message += f"; nor can {', '.join(shown)}"
        if len(places) > len(shown):
            message += f", and others up to batch[{places[-1][-1]}]"
    raise type(first)(message)


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


def join_words(words: Sequence[str]) -> Words:
    """The text of a list of words, apart by blanks."""
    starts = itertools.accumulate((len(word) + 1 for word in words), initial=0)
    spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]
    return Words(" ".join(words), list(words), spans)


def check_words(batch: Any) -> tuple[list[Any], bool]:
    """What `predict` takes where it is about words, each input checked by itself.

    Args:
        batch: a list of texts, of which each is a str or a list of words; or one str.

    Returns, raises:
        As `check_texts`, of str and lists of str. A list without words, or with an empty one, is
        an error too.
    """
    single = isinstance(batch, str)
    items = _as_list(
        batch, single, "a list of texts, each a str or a list of words, or one str", sequences=False
    )

    def check(index: int, item: Any) -> Any:
        if isinstance(item, list):
            item = [*item]  # the caller may write to it meanwhile
        if isinstance(item, str):
            check_text(f"batch[{index}]", item)
        elif isinstance(item, list) and all(isinstance(word, str) for word in item):
            for number, word in enumerate(item):
                check_text(f"batch[{index}][{number}]", word, may_be_empty=False)
            if not item:
                raise InvalidInputError(f"batch[{index}] holds no word")
        else:
            raise InvalidTypeError(
                f"batch[{index}] is {_describe(item)}; expected a str or a list of words"
            )
        return item

    return [_attempt(check, index, item) for index, item in enumerate(items)], single


def _as_list(batch: Any, single: bool, expected: str, *, sequences: bool = True) -> list[Any]:
    if single:
        return [batch]
    if not isinstance(batch, list):
        hint = " (use list(...) for other sequences)" if sequences else ""
        raise InvalidTypeError(f"batch is {_describe(batch)}; expected {expected}{hint}")
    if not batch:
        raise InvalidInputError("the batch is empty")
    return batch


def _attempt(check: Callable[[int, Any], Any], index: int, item: Any) -> Any:
    if isinstance(item, BertrtError):
        return item  # checked before
    try:
        return check(index, item)
    except BertrtError as error:
        # Without the frames that it came through, which hold the whole batch.
        return error.with_traceback(None)


def _cut(message: str) -> str:
    return message if len(message) <= _MESSAGE else message[: _MESSAGE - 3] + "..."


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], str)
    )


def _bad_item(index: int, item: Any, pairs: bool | None) -> InvalidTypeError:
    if isinstance(item, str):
        found = "a str among pairs"
    elif _is_pair(item):
        found = "a pair among single texts"
    else:
        found = _describe(item)
    expected = {None: "a str or a tuple (str, str)", True: "a tuple (str, str)", False: "a str"}
    return InvalidTypeError(f"batch[{index}] is {found}; expected {expected[pairs]}")


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    found = f"a {type(value).__name__}"
    if isinstance(value, tuple | list):
        found += f" of {', '.join(type(part).__name__ for part in value[:3]) or 'nothing'}"
    return found


def check_text(name: str, text: str, *, may_be_empty: bool = True) -> None:
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
