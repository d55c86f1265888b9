"""A text in tokens, as people look at them: each with its spelling and its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertrt.text.encoding import Tokenizer
from bertrt.text.inputs import check_text

__all__ = ["Token", "shown_tokens"]


@dataclass(frozen=True)
class Token:
    """A token of a text.

    Attributes:
        id: its id.
        text: what it stands for in the text; of a special token its name.
        special: whether it opens, closes or separates texts.
        start, stop: where it stands in the text, in characters; None for one that was added.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def shown_tokens(tokenizer: Tokenizer, text: str, *, special: bool) -> list[Token]:
    """The tokens of a text, however long it is; with `special` those that are added, too.

    Raises:
        InvalidInputError: the text holds a NUL character or a lone surrogate.
    """
    check_text("the text", text)
    pieces = tokenizer.tokenize_text([text])[0]
    assert pieces.spans is not None  # of a text they are known
    found = [
        Token(token_id, text[start:stop], token_id in tokenizer.special_ids, start, stop)
        for token_id, (start, stop) in zip(pieces.ids, pieces.spans, strict=True)
    ]
    frame = tokenizer.join([-1]).ids if special else np.array([-1])
    if not (frame == -1).any():  # a tokenizer that makes nothing of any text
        return found
    added = [
        Token(token_id, tokenizer.token(token_id), True, None, None) if token_id >= 0 else None
        for token_id in frame.tolist()
    ]
    at = added.index(None)
    return [
        *(token for token in added[:at] if token is not None),
        *found,
        *(token for token in added[at:] if token is not None),
    ]
