"""How a ``tokenizer.json`` is read: to the tokenizers library's own object, once what that library
has no bounds for has been looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from bertrt.errors import BertrtError, ModelFormatError
from bertrt.host.files import (
    LARGEST_VOCABULARY,
    check_json,
    parse_json,
    read_bytes,
    without_escapes,
)
from bertrt.text.charsmap import check_charsmaps, has_charsmap

__all__ = ["check_pieces", "read_tokenizer", "refusing", "without_vocabulary"]

# Pieces of Unigram models have 16 characters and fewer, those that users add more; a million of
# them have some eight million.
_LONGEST_PIECE = 1000
_MOST_CHARACTERS = 16 << 20
# A file that may be read without a look at its pieces: with so few lists, or so small.
_FEW = 1000
_SMALL = 4 << 20


def read_tokenizer(path: Path, *, exact_scores: bool = False) -> Tokenizer:
    """Read a ``tokenizer.json``; ModelFormatError where the library cannot.

    Args:
        path: the file.
        exact_scores: of a Unigram model, whether the scores are read to the last bit. The library
            alone reads some of them a bit off, which decides between pieces whose sums are equal.
    """
    with refusing(f"{path}: not a tokenizer that the tokenizers library can read"):
        data = read_bytes(path, LARGEST_VOCABULARY)
        if not exact_scores:
            check_json(data)
            pieces = (data.count(b"[") > _FEW and len(data) > _SMALL) or _has_long_text(data)
            if pieces or has_charsmap(data):
                content = parse_json(data, distinct=True)
                check_pieces(content["model"].get("vocab"), path)
                check_charsmaps(content, path)
            return Tokenizer.from_str(data.decode("utf-8"))
        content = parse_json(data)
        model = content["model"]
        check_pieces(model["vocab"], path)
        check_charsmaps(content, path)
        tokenizer = without_vocabulary(content)
        tokenizer.model = models.Unigram(
            [(piece, score) for piece, score in model["vocab"]],
            unk_id=model["unk_id"],
            byte_fallback=model.get("byte_fallback", False),
        )
        tokenizer.add_tokens(
            [
                AddedToken(**{name: value for name, value in token.items() if name != "id"})
                for token in content["added_tokens"]
            ]
        )
    return tokenizer


def check_pieces(pieces: Any, path: Path) -> None:
    """Refuse, with a ModelFormatError, pieces of a Unigram model that the library has no memory
    for: it makes a tree of their bytes, with a branch of 350 bytes for each, and takes it down one
    call within the other. Pieces of other models, which are no list, may be of any length."""
    if not isinstance(pieces, Sequence):
        return
    total = 0
    for piece in pieces:
        text = piece[0] if isinstance(piece, list | tuple) and piece else piece
        if isinstance(text, str):
            if len(text) > _LONGEST_PIECE:
                raise ModelFormatError(
                    f"{path}: the piece {text[:20]!r}... has {len(text)} characters; at most "
                    f"{_LONGEST_PIECE} are read"
                )
            total += len(text)
    if total > _MOST_CHARACTERS:
        raise ModelFormatError(
            f"{path}: the pieces have {total} characters; at most {_MOST_CHARACTERS} are read"
        )


def _has_long_text(data: bytes) -> bool:
    bare = without_escapes(data)
    at = 0
    while at + _LONGEST_PIECE < len(bare):
        at = bare.rfind(b'"', at, at + _LONGEST_PIECE) + 1
        if not at:
            return True
    return False


def without_vocabulary(content: Mapping[str, Any]) -> Tokenizer:
    """What a ``tokenizer.json`` with this content holds beside its vocabulary and added tokens."""
    nothing = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({**content, "model": nothing, "added_tokens": []}))


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Make what the library raises a ModelFormatError that begins with the message."""
    try:
        yield
    except BertrtError:
        raise
    # It raises plain Exception, for one where an unknown word has no token; its panics are none.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFormatError(f"{message}: {error}") from None
