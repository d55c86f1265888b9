"""Texts that are far longer than what is kept of them: a part of such a text is tokenized, where
that provably gives the same.

It does where a tokenizer takes white space for the end of a word whatever stands around it, and
makes the tokens of each word by itself: then the tokens of a part that ends behind white space are
the first ones of the whole text. Such are BERT's rules. Where the part alone gives more tokens than
are kept, nothing of the rest is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["long_ones", "shorten"]

# A text is long with so many characters for each token that may be kept. English has four to five
# a token; the first part has twice that, and four times as many each time that does not suffice.
_LONG = 32
_FIRST = 10
_GROWTH = 4

_BLANKS = " \n\t\r"


def long_ones(texts: Sequence[str], tokens: int) -> list[int]:
    """The places of the texts that are worth it, where so many tokens are kept."""
    return [i for i, text in enumerate(texts) if len(text) > _LONG * tokens]


def shorten(
    texts: Mapping[int, str], tokens: int, exceed: Callable[[list[str]], Sequence[bool]]
) -> dict[int, str]:
    """Of each text a part, from its beginning to behind some white space, that gives more than
    `tokens` tokens; texts without such a part are left out.

    Args:
        texts: long ones, by their places.
        tokens: how many are kept at most.
        exceed: says of texts whether each gives more tokens than that.
    """
    found: dict[int, str] = {}
    left = dict(texts)
    size = _FIRST * tokens
    while left:
        parts = {}
        for i, text in list(left.items()):
            if size >= len(text):
                del left[i]
            elif end := 1 + max(text.rfind(blank, 0, size) for blank in _BLANKS):
                parts[i] = text[:end]
        for i, enough in zip(parts, exceed(list(parts.values())) if parts else (), strict=True):
            if enough:
                found[i] = parts[i]
                del left[i]
        size *= _GROWTH
    return found
