"""A ``tokenizer.json`` with Hugging Face's rules, special and added tokens included: the kind
"huggingface".
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, normalizers

from bertrt.errors import ModelFormatError
from bertrt.text.encoding import Encoding, Pieces, Text, some_at_once, text_pieces

__all__ = ["HuggingFaceTokenizer", "read_tokenizer"]


def read_tokenizer(path: Path) -> _RustTokenizer:
    """Read a ``tokenizer.json``; raises ModelFormatError where the library cannot."""
    try:
        return _RustTokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises plain Exception for a file that it cannot read.
    except Exception as error:
        raise ModelFormatError(
            f"{path}: not a tokenizer that the tokenizers library can read ({error})"
        ) from None


# Special tokens with their types, then a text by its number, if there is one, and its type
_Frame = tuple[list[tuple[int, int]], int | None, int]


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, which it makes its own: truncated to `max_length`
    the way transformers does it (longest_first), and never padded."""

    def __init__(self, tokenizer: _RustTokenizer, *, max_length: int) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        normalizer = tokenizer.normalizer
        self.lower = isinstance(normalizer, normalizers.Lowercase) or (
            isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase
        )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._frames = self._frame(False), self._frame(True)
        self.special_ids = frozenset(
            token_id for frame in self._frames for special, _, _ in frame for token_id, _ in special
        )
        model = tokenizer.model
        self._prefix = (
            model.continuing_subword_prefix if isinstance(model, models.WordPiece) else None
        )
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        # tokenizer.json has no name for it; these are BERT's and RoBERTa's.
        known = (mask for mask in ("[MASK]", "<mask>") if tokenizer.token_to_id(mask) is not None)
        self.mask = next(known, None)
        self.mask_id = None if self.mask is None else tokenizer.token_to_id(self.mask)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``; the truncation is not part of it."""
        content = json.loads(self._tokenizer.to_str())
        content["truncation"] = None
        return json.dumps(content, ensure_ascii=False)

    def limit(self, max_length: int) -> None:
        """See `Tokenizer.limit`."""
        self.max_length = max_length
        truncation = self._tokenizer.truncation or {}
        self._tokenizer.enable_truncation(**{**truncation, "max_length": max_length})

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """See `Tokenizer.encode`."""
        return [
            Encoding(
                np.array(encoding.ids, np.int32),
                np.array(encoding.type_ids, np.int32),
                truncated=bool(encoding.overflowing),
            )
            for some in some_at_once(batch)
            for encoding in self._tokenizer.encode_batch_fast(some)
        ]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        return [[piece for part in parts for piece in part.ids] for parts in self._whole(texts)]

    def tokenize_words(self, batch: Sequence[Sequence[str]]) -> list[Pieces]:
        """See `Tokenizer.tokenize_words`. The words are one text, so that a tokenizer that keeps
        white space sees it; a token belongs to the word in which it ends."""
        texts = [" ".join(words) for words in batch]
        found = []
        for text, words, parts in zip(texts, batch, self._whole(texts), strict=True):
            starts = [0, *itertools.accumulate(len(word) + 1 for word in words[:-1])]
            ids, owners, spans = [], [], []
            for part in parts:
                for token_id, (start, end) in zip(part.ids, part.offsets, strict=True):
                    start += len(text[start:end]) - len(text[start:end].lstrip())
                    ids.append(token_id)
                    owners.append(bisect.bisect_right(starts, max(start, end - 1)) - 1)
                    spans.append((start, end))
            found.append(Pieces(ids, owners, spans))
        return found

    def tokenize_text(self, texts: Sequence[str]) -> list[Pieces]:
        """See `Tokenizer.tokenize_text`."""
        return [
            text_pieces(text, parts, self._prefix)
            for text, parts in zip(texts, self._whole(texts), strict=True)
        ]

    def _whole(self, texts: Sequence[str]) -> Iterator[list[Any]]:
        """The library's encodings of each text, which together are all of it."""
        for some in some_at_once(texts):
            for encoding in self._tokenizer.encode_batch(some, add_special_tokens=False):
                # What is beyond the maximum length comes in further encodings.
                yield [encoding, *encoding.overflowing]

    def room(self, *, pair: bool) -> int:
        """See `Tokenizer.room`."""
        return self.max_length - self._tokenizer.num_special_tokens_to_add(pair)

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Encoding:
        """See `Tokenizer.join`."""
        texts = [first] if second is None else [first, second]
        ids: list[int] = []
        types: list[int] = []
        for special, text, text_type in self._frames[len(texts) - 1]:
            ids += [token_id for token_id, _ in special]
            types += [token_type for _, token_type in special]
            if text is not None:
                ids += texts[text]
                types += [text_type] * len(texts[text])
        return Encoding(np.array(ids, np.int32), np.array(types, np.int32), False)

    def token(self, token_id: int) -> str:
        """See `Tokenizer.token`."""
        return str(self._tokenizer.id_to_token(token_id))

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return self._prefix is not None and token.startswith(self._prefix)

    def _frame(self, pair: bool) -> list[_Frame]:
        """How one text, or a pair, stands among special tokens: for each text the special tokens
        before it, its number and its token type; then those behind the last.

        The library only shows it by doing it, to a text that gives a token.
        """
        for probe in ("a", *itertools.islice(self._tokenizer.get_vocab(), 100)):
            encoding = self._tokenizer.encode(probe, probe if pair else None)
            if {0, int(pair)} <= set(encoding.sequence_ids):
                break
        else:
            return []
        frame: list[_Frame] = []
        special: list[tuple[int, int]] = []
        seen = None
        for token_id, token_type, text in zip(
            encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
        ):
            if text is None:
                special.append((token_id, token_type))
            elif text != seen:
                frame.append((special, text, token_type))
                seen, special = text, []
        return [*frame, (special, None, 0)]
