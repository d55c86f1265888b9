"""What a tokenizer is to the rest of the package, and what it makes of a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from bertrt.errors import InvalidInputError
from bertrt.text.basic import is_chinese, is_punctuation

__all__ = ["Encoding", "Pieces", "Text", "Tokenizer", "no_token", "some_at_once", "text_pieces"]

Text = str | tuple[str, str]
T = TypeVar("T")


# Encodings of the Rust library carry much more than ids (tokens, offsets, words); this many of them
# exist at a time.
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Encoding:
    """One text, or pair of texts, as the model takes it, special tokens included.

    Attributes:
        ids: token ids, int32, shape (tokens,).
        types: token types, int32, shape (tokens,): 0 for the first text, 1 for the second.
        truncated: whether tokens were dropped to fit the model's maximum length.
        prompt: how many of the first tokens are those of a prompt, special ones before it among
            them.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool = False
    prompt: int = 0


@dataclass(frozen=True, eq=False)
class Pieces:
    """A text, or a list of words, in tokens.

    Attributes:
        ids: the tokens' ids.
        words: for each token, the number of the word that it comes from.
        spans: for each token, where it stands in the text, in characters, of a list of words in
            ``" ".join(words)``; None where the tokenizer does not know (GluonNLP's, of words).
    """

    ids: list[int]
    words: list[int]
    spans: list[tuple[int, int]] | None


class Tokenizer(Protocol):
    """What an engine asks of a tokenizer.

    Attributes:
        max_length: the most tokens of a sequence, special ones included.
        lower: whether text is lower-cased.
        mask: the token that stands for a word to be guessed; None where there is none.
        mask_id: its id.
        padding_id: the id that no text may hold, since the model takes it for padding; None: there
            is none such.
        special_ids: the ids of the tokens that open, close and separate texts.
        truncation_side: the side that loses tokens of a text that is too long, "left" or "right".
    """

    max_length: int
    lower: bool
    mask: str | None
    mask_id: int | None
    padding_id: int | None
    special_ids: frozenset[int]
    truncation_side: str

    @property
    def vocab_size(self) -> int:
        """The ids are below it."""
        ...

    def limit(self, max_length: int) -> None:
        """Make `max_length` another one, from 3 on."""
        ...

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """Encode texts, or pairs of texts, each to at most `max_length` tokens.

        Args:
            batch: texts, or pairs of texts.
            masks: whether the mask token, where a text spells it out, means the mask. (It does in
                Hugging Face's rules whatever is said here.)

        A text without tokens, such as an empty one, has the special tokens alone.
        """
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens and whatever their number."""
        ...

    def tokenize_words(self, batch: Sequence[Sequence[str]]) -> list[Pieces]:
        """The tokens of each list of words, likewise; a word may give none."""
        ...

    def tokenize_text(self, texts: Sequence[str]) -> list[Pieces]:
        """The tokens of each text, likewise, with words of the tokenizer's own: see
        `text_pieces`."""
        ...

    def room(self, *, pair: bool) -> int:
        """How many tokens fit into a sequence beside the special ones."""
        ...

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Encoding:
        """The sequence of one or two texts, given as ids that fit."""
        ...

    def token(self, token_id: int) -> str:
        """A token, as the vocabulary spells it."""
        ...

    def continues(self, token: str) -> bool:
        """Whether a token goes on with the word of the token before it."""
        ...

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """A text of tokens, as near to what they come from as they tell; with `special` those that
        open, close and separate texts are spelled out in it."""
        ...


def some_at_once(texts: Sequence[T]) -> Iterator[Sequence[T]]:
    """The texts, in slices of as many as may be in the Rust library at a time."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield texts[start : start + _TEXTS_AT_ONCE]


def text_pieces(text: str, parts: Iterable[Any], prefix: str | None = None) -> Pieces:
    """What the Rust library made of a text, in encodings that together are all of it.

    A word begins where the tokenizer's own pre-tokenization begins one, and on either side of a
    mark of punctuation or a Chinese character; not at an accent or vowel sign that is a character
    of its own, nor behind it. BERT's pre-tokenization does all of that. That of others splits at
    white space alone, or (GPT-2's) takes such signs for no part of a word: a word is the same with
    all of them.

    Args:
        text: the text.
        parts: the encodings.
        prefix: what a token begins with that goes on with a word; None where none says so.
    """
    ids: list[int] = []
    words: list[int] = []
    spans: list[tuple[int, int]] = []
    last, word = None, -1
    for part in parts:
        for token_id, token, owner, (start, end) in zip(
            part.ids, part.tokens, part.word_ids, part.offsets, strict=True
        ):
            shown = text[start:end].lstrip()
            start = end - len(shown) if shown else start
            apart = owner is None or owner != last
            goes_on = prefix is not None and token.startswith(prefix)
            if not ids or _begins(text, spans[-1], (start, end), apart, goes_on):
                word += 1
            last = owner
            ids.append(token_id)
            words.append(word)
            spans.append((start, end))
    return Pieces(ids, words, spans)


def _begins(
    text: str, one: tuple[int, int], other: tuple[int, int], apart: bool, goes_on: bool
) -> bool:
    """Whether a word begins with a token that stands behind another one; `apart` says that the
    pre-tokenization parts them, `goes_on` that the token says it does not."""
    # Bytes of one character have its place, each of them.
    if not one[0] < one[1] <= other[0] < other[1]:
        return apart or (one[1] <= other[0] < other[1] and is_punctuation(text[other[0]]))
    ends = text[one[1] - 1], text[other[0]]
    if any(map(is_punctuation, ends)) or (not goes_on and any(map(is_chinese, ends))):
        return True
    joined = one[1] == other[0] and any(unicodedata.category(char)[0] == "M" for char in ends)
    return apart and not joined


def no_token(index: int) -> InvalidInputError:
    """The error for a text, by its place in the batch, that gives no token."""
    return InvalidInputError(
        f"batch[{index}]: the text is empty, or holds nothing that gives a token "
        "(white space or control characters only)"
    )
