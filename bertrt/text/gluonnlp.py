"""GluonNLP's tokenizers, the kinds "gluonnlp", "gluonnlp-bpe" and "gluonnlp-sentencepiece".

No token in a text is special: "[MASK]" is three words. WordPiece and BPE run in the `tokenizers`
library, SentencePiece in its own. Letters, digits and white space of BPE are those of the library's
Unicode tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from bertrt.errors import MissingDependencyError, ModelFormatError
from bertrt.host.files import read_bytes
from bertrt.text.basic import basic_spans, basic_tokenize
from bertrt.text.encoding import Encoding, Pieces, Text, some_at_once, text_pieces
from bertrt.text.prefix import long_ones, shorten
from bertrt.text.threads import with_or_without_threads
from bertrt.text.vocabulary import BYTES, Vocabulary

__all__ = ["BytePairTokenizer", "GluonTokenizer", "SentencePieceTokenizer", "WordPieceTokenizer"]

# GluonNLP's limit; a longer word is one unknown token. (Hugging Face's is 100.)
_MAX_CHARS_PER_WORD = 200


class GluonTokenizer(ABC):
    """GluonNLP's ``BERTSentenceTransform``, without the padding, over one of its tokenizers."""

    lower = False
    # Whether white space ends a word, see `bertrt.text.prefix`: the basic tokenizer says so.
    parts_at_blanks = True
    # GluonNLP counts every token of a text.
    padding_id: int | None = None
    truncation_side = "right"

    def __init__(self, vocabulary: Vocabulary, *, max_length: int) -> None:
        self.max_length = max_length
        self.vocab_size = len(vocabulary.token_to_idx)
        self._cls = vocabulary.token_to_idx[vocabulary.cls]
        self._sep = vocabulary.token_to_idx[vocabulary.sep]
        self._tokens = sorted(vocabulary.token_to_idx, key=vocabulary.token_to_idx.__getitem__)
        self.special_ids = frozenset((self._cls, self._sep))
        self.mask = vocabulary.mask
        self.mask_id = None if self.mask is None else vocabulary.token_to_idx[self.mask]

    def limit(self, max_length: int) -> None:
        """See `Tokenizer.limit`."""
        self.max_length = max_length

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """See `Tokenizer.encode`. A second text without tokens counts as none, as in GluonNLP."""
        pieces = self._masked if masks else self.tokenize
        if batch and isinstance(batch[0], tuple):
            firsts = self._first_pieces([pair[0] for pair in batch], pieces)
            seconds = self._first_pieces([pair[1] for pair in batch], pieces)
        else:
            firsts = self._first_pieces([text for text in batch if isinstance(text, str)], pieces)
            seconds = [[]] * len(batch)
        return [self._join(*pair) for pair in zip(firsts, seconds, strict=True)]

    def _first_pieces(
        self, texts: list[str], pieces: Callable[[Sequence[str]], list[list[int]]]
    ) -> list[list[int]]:
        """The pieces of each text; of a long one the first, more than are kept of it."""
        most = self.max_length
        long = {i: texts[i] for i in long_ones(texts, most)} if self.parts_at_blanks else {}
        if long and not (self.mask and any(map(str.isspace, self.mask))):
            for i, part in shorten(
                long, most, lambda parts: [len(own) > most for own in pieces(parts)]
            ).items():
                texts[i] = part
        return pieces(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        pieces: list[list[int]] = []
        for some in some_at_once(texts):
            pieces.extend(self._some_pieces(some))
        return pieces

    @abstractmethod
    def _some_pieces(self, texts: Sequence[str]) -> Sequence[list[int]]:
        """The ids of each text, without special tokens."""

    def _masked(self, texts: Sequence[str]) -> list[list[int]]:
        """As `tokenize`, where the mask token means the mask."""
        if self.mask is None or self.mask_id is None:
            return self.tokenize(texts)
        split = [text.split(self.mask) for text in texts]
        parts = iter(self.tokenize([part for parts in split for part in parts]))
        pieces = []
        for own in split:
            ids = list(next(parts))
            for _ in own[1:]:
                ids += [self.mask_id, *next(parts)]
            pieces.append(ids)
        return pieces

    def tokenize_words(self, batch: Sequence[Sequence[str]]) -> list[Pieces]:
        """See `Tokenizer.tokenize_words`. Every word is a text of its own, as in GluonNLP's
        scripts."""
        parts = iter(self.tokenize([word for words in batch for word in words]))
        found = []
        for words in batch:
            own = [next(parts) for _ in words]
            found.append(
                Pieces(
                    [piece for part in own for piece in part],
                    [index for index, part in enumerate(own) for _ in part],
                    None,
                )
            )
        return found

    def tokenize_text(self, texts: Sequence[str]) -> list[Pieces]:
        """See `Tokenizer.tokenize_text`. The words are those of the basic tokenizer, each
        tokenized by itself, as in GluonNLP's scripts; their pieces have no place of their own, and
        stand where the word does."""
        words = [basic_spans(text, lower=self.lower) for text in texts]
        batch = [
            [text[start:end] for start, end in own] for text, own in zip(texts, words, strict=True)
        ]
        return [
            Pieces(pieces.ids, pieces.words, [own[word] for word in pieces.words])
            for pieces, own in zip(self.tokenize_words(batch), words, strict=True)
        ]

    def room(self, *, pair: bool) -> int:
        """See `Tokenizer.room`."""
        return self.max_length - (3 if pair else 2)

    def token(self, token_id: int) -> str:
        """See `Tokenizer.token`."""
        return self._tokens[token_id]

    @abstractmethod
    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`: what GluonNLP's own tokenizer says, ``is_first_subword``."""

    def _join(self, first: list[int], second: list[int]) -> Encoding:
        # The room for pieces: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].
        room = self.max_length - (3 if second else 2)
        truncated = len(first) + len(second) > room
        if truncated:
            keep_first, keep_second = _truncate_pair(len(first), len(second), room)
            first, second = first[:keep_first], second[:keep_second]
        joined = self.join(first, second or None)
        return Encoding(joined.ids, joined.types, truncated)

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """See `Tokenizer.decode`."""
        return self._spell([self.token(i) for i in ids if special or i not in self.special_ids])

    @abstractmethod
    def _spell(self, tokens: list[str]) -> str:
        """A text of tokens."""

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Encoding:
        """See `Tokenizer.join`."""
        ids = [self._cls, *first, self._sep]
        types = np.zeros(len(ids) + (0 if second is None else len(second) + 1), np.int32)
        if second is not None:
            types[len(ids) :] = 1
            ids += [*second, self._sep]
        return Encoding(np.array(ids, np.int32), types, False)


class WordPieceTokenizer(GluonTokenizer):
    """GluonNLP's ``BERTTokenizer``."""

    def __init__(self, vocabulary: Vocabulary, *, lower: bool, max_length: int) -> None:
        super().__init__(vocabulary, max_length=max_length)
        self.lower = lower
        self._words = _RustTokenizer(
            models.WordPiece(
                vocabulary.token_to_idx,
                unk_token=vocabulary.unknown,
                max_input_chars_per_word=_MAX_CHARS_PER_WORD,
                continuing_subword_prefix="##",
            )
        )
        self._words.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")

    def _some_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        words = [basic_tokenize(text, lower=self.lower) for text in texts]
        encodings = with_or_without_threads(
            self._words.encode_batch_fast, words, add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return token.startswith("##")

    def _spell(self, tokens: list[str]) -> str:
        return str(decoders.WordPiece("##", cleanup=False).decode(tokens))


class BytePairTokenizer(GluonTokenizer):
    """GluonNLP's ``GPT2BPETokenizer``."""

    parts_at_blanks = False

    def __init__(
        self, vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], *, max_length: int
    ) -> None:
        """Raises ModelFormatError where a byte or the result of a merge is not in the
        vocabulary: then they do not belong together."""
        super().__init__(vocabulary, max_length=max_length)
        wanted = [*BYTES, *(first + second for first, second in merges)]
        missing = [piece for piece in wanted if piece not in vocabulary.token_to_idx]
        if missing:
            raise ModelFormatError(
                f"the vocabulary lacks {len(missing)} of the {len(wanted)} pieces that the merges "
                f"make ({missing[0]!r} is one); they do not belong together"
            )
        self._texts = _RustTokenizer(models.BPE(vocabulary.token_to_idx, list(merges)))
        self._texts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def _some_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = with_or_without_threads(
            self._texts.encode_batch_fast, texts, add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def tokenize_text(self, texts: Sequence[str]) -> list[Pieces]:
        """See `Tokenizer.tokenize_text`. White space is part of the pieces, and so they are those
        of the whole text, and know their places."""
        encodings = with_or_without_threads(
            self._texts.encode_batch, texts, add_special_tokens=False
        )
        return [text_pieces(text, [own]) for text, own in zip(texts, encodings, strict=True)]

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return not token.startswith(_BLANK)

    def _spell(self, tokens: list[str]) -> str:
        return str(decoders.ByteLevel().decode(tokens))


_BLANK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"


class SentencePieceTokenizer(GluonTokenizer):
    """GluonNLP's ``BERTSPTokenizer``."""

    def __init__(
        self, vocabulary: Vocabulary, model: Path, *, lower: bool, max_length: int
    ) -> None:
        """Raises MissingDependencyError without the package sentencepiece; ModelFormatError where
        the file `model` is no SentencePiece model, or not the one of this vocabulary."""
        super().__init__(vocabulary, max_length=max_length)
        self.lower = lower
        self._token_to_idx = vocabulary.token_to_idx
        self._unknown = vocabulary.token_to_idx[vocabulary.unknown]
        try:
            import sentencepiece
        except ImportError as error:
            raise MissingDependencyError(
                f"{model}: the tokenizer needs the package sentencepiece ({error}): "
                "pip install 'bertrt[sentencepiece]'"
            ) from error
        self._words = sentencepiece.SentencePieceProcessor()
        try:
            self._words.load_from_serialized_proto(read_bytes(model, _limit(vocabulary)))
        except RuntimeError as error:
            raise ModelFormatError(f"{model}: not a SentencePiece model ({error})") from None
        for idx in range(len(self._words)):
            piece = self._words.id_to_piece(idx)
            if self._token_to_idx.get(piece) != idx:
                raise ModelFormatError(
                    f"{model}: its piece {piece!r} has the id {idx}, and in the vocabulary "
                    f"{self._token_to_idx.get(piece)}; they do not belong together"
                )

    def _some_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        words = [basic_tokenize(text, lower=self.lower).split() for text in texts]
        distinct = list(dict.fromkeys(word for text in words for word in text))
        pieces = self._words.encode(distinct, out_type=str, num_threads=1)
        # By the pieces, as GluonNLP does, and not by the library's own ids.
        ids = {
            word: [self._token_to_idx.get(piece, self._unknown) for piece in found]
            for word, found in zip(distinct, pieces, strict=True)
        }
        return [[idx for word in text for idx in ids[word]] for text in words]

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return not token.startswith("\N{LOWER ONE EIGHTH BLOCK}")

    def _spell(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").removeprefix(" ")


def _limit(vocabulary: Vocabulary) -> int:
    """The most bytes of a SentencePiece model with these pieces: its tables of rules have some
    300,000, and a piece some 16. Read, an empty piece takes a hundred."""
    return (4 << 20) + 256 * len(vocabulary.token_to_idx)


def _truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths left when one token after the other is taken from the longer text, from the
    second where both are as long, until both fit."""
    shorter = min(first, second)
    if room - shorter > shorter:
        return (room - shorter, second) if first > second else (first, room - shorter)
    return room - room // 2, room // 2
