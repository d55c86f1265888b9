"""From texts to token ids.

The kinds of tokenizer, as the bundle's manifest names them:

``gluonnlp``
    The ids of GluonNLP's ``BERTTokenizer`` and ``BERTSentenceTransform``. The basic tokenizer
    (white space, control characters, Chinese characters, case, accents, punctuation) follows
    GluonNLP's rules with Python's own Unicode tables, which are the tables that GluonNLP uses;
    WordPiece runs in the `tokenizers` library. No token in a text is special: "[MASK]" is three
    words.
``gluonnlp-bpe``
    The ids of GluonNLP's ``GPT2BPETokenizer``, for RoBERTa: byte-level BPE in the `tokenizers`
    library. Letters, digits and white space are those of that library's Unicode tables.
``gluonnlp-sentencepiece``
    The ids of GluonNLP's ``BERTSPTokenizer``, for KoBERT: the basic tokenizer, then the
    `sentencepiece` library on every word.
``huggingface``
    A ``tokenizer.json`` with Hugging Face's rules, special and added tokens included.
"""

from __future__ import annotations

import bisect
import itertools
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from bertrt.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
)

__all__ = [
    "BytePairTokenizer",
    "Encoding",
    "GluonTokenizer",
    "HuggingFaceTokenizer",
    "Pieces",
    "SentencePieceTokenizer",
    "Text",
    "Tokenizer",
    "Vocabulary",
    "WordPieceTokenizer",
    "basic_tokenize",
    "check_vocabulary",
    "load_tokenizer",
    "read_merges",
]

Text = str | tuple[str, str]

# GluonNLP's limit; a longer word is one unknown token. (Hugging Face's is 100.)
_MAX_CHARS_PER_WORD = 200

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
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool


@dataclass(frozen=True, eq=False)
class Pieces:
    """A list of words in tokens.

    Attributes:
        ids: the tokens' ids.
        words: for each token, the word that it comes from.
        spans: for each token, where it stands in ``" ".join(words)``, in characters; None where
            the tokenizer does not know (GluonNLP's).
    """

    ids: list[int]
    words: list[int]
    spans: list[tuple[int, int]] | None


class Tokenizer(Protocol):
    """What an engine asks of a tokenizer.

    Attributes:
        max_length: the most tokens of a sequence, special ones included.
        vocab_size: the ids are below it.
        lower: whether text is lower-cased.
        mask: the token that stands for a word to be guessed; None where there is none.
        mask_id: its id.
        special_ids: the ids of the tokens that open, close and separate texts.
    """

    max_length: int
    vocab_size: int
    lower: bool
    mask: str | None
    mask_id: int | None
    special_ids: frozenset[int]

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """Encode texts, or pairs of texts, each to at most `max_length` tokens.

        Args:
            batch: texts, or pairs of texts.
            masks: whether the mask token, where a text spells it out, means the mask. (It does in
                Hugging Face's rules whatever is said here.)

        Raises:
            InvalidInputError: a text, or the first text of a pair, gives no token at all; the
                message names its index.
        """
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens and whatever their number."""
        ...

    def tokenize_words(self, batch: Sequence[Sequence[str]]) -> list[Pieces]:
        """The tokens of each list of words, likewise; a word may give none."""
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


def load_tokenizer(
    settings: Mapping[str, Any], directory: Path, vocab_size: int | None = None
) -> Tokenizer:
    """Load the tokenizer that a bundle's manifest describes.

    Args:
        settings: ``{"kind": kind, "file": name, "lower": bool, "max_length": int}``, for the kinds
            gluonnlp-bpe and gluonnlp-sentencepiece with ``"pieces": name``, the file of the merges
            or of the SentencePiece model. "lower" is read where the basic tokenizer is used.
        directory: where the files lie.
        vocab_size: rows of the model's embedding matrix; a vocabulary that needs more is refused.

    Raises:
        MissingFileError: a file is not there.
        ModelFormatError: the settings or a file are broken, or do not fit the model.
        MissingDependencyError: the package sentencepiece is wanted and not installed.
    """
    kind = _setting(settings, "kind", str)
    path = _file(settings, "file", directory)
    max_length = _setting(settings, "max_length", int)
    if max_length < 3:
        raise ModelFormatError(
            f"tokenizer settings: max_length is {max_length}; at least 3 are needed, "
            "for [CLS], a token and [SEP]"
        )
    tokenizer: GluonTokenizer | HuggingFaceTokenizer
    if kind == "gluonnlp":
        lower = _setting(settings, "lower", bool)
        tokenizer = WordPieceTokenizer(Vocabulary.read(path), lower=lower, max_length=max_length)
    elif kind == "gluonnlp-bpe":
        merges = read_merges(_file(settings, "pieces", directory))
        tokenizer = BytePairTokenizer(Vocabulary.read(path), merges, max_length=max_length)
    elif kind == "gluonnlp-sentencepiece":
        lower = _setting(settings, "lower", bool)
        pieces = _file(settings, "pieces", directory)
        tokenizer = SentencePieceTokenizer(
            Vocabulary.read(path), pieces, lower=lower, max_length=max_length
        )
    elif kind == "huggingface":
        tokenizer = HuggingFaceTokenizer(_read_tokenizer(path), max_length=max_length)
    else:
        raise ModelFormatError(
            f"tokenizer settings: kind is {kind!r}; expected 'gluonnlp', 'gluonnlp-bpe', "
            "'gluonnlp-sentencepiece' or 'huggingface'"
        )
    if vocab_size is not None:
        check_vocabulary(tokenizer, vocab_size, path)
    return tokenizer


def check_vocabulary(
    tokenizer: GluonTokenizer | HuggingFaceTokenizer, vocab_size: int, source: Path
) -> None:
    """Refuse, with a ModelFormatError that names `source`, a tokenizer with more ids than the
    model's embedding has rows."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelFormatError(
            f"{source}: the vocabulary has ids up to {tokenizer.vocab_size - 1}, "
            f"the model's embedding has only {vocab_size} rows"
        )


def _file(settings: Mapping[str, Any], key: str, directory: Path) -> Path:
    path = Path(directory) / _setting(settings, key, str)
    if not path.is_file():
        raise MissingFileError(f"{path}: the tokenizer's file is missing")
    return path


def _setting(settings: Mapping[str, Any], key: str, kind: type) -> Any:
    value = settings.get(key)
    # bool is an int to Python, and no length to us.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelFormatError(
            f"tokenizer settings: {key!r} is {value!r}; expected a value of type {kind.__name__}"
        )
    return value


# --- GluonNLP ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A GluonNLP ``BERTVocab``, or RoBERTa's ``Vocab``, as its JSON file holds it.

    Attributes:
        token_to_idx: every token with its id; the ids are 0 to the number of tokens - 1.
        unknown: the token for a word outside the vocabulary.
        cls, sep: the tokens that open a sequence and close a text; RoBERTa's begin and end of a
            sentence.
        mask: the token for a word to be guessed; None where there is none.
    """

    token_to_idx: dict[str, int]
    unknown: str
    cls: str
    sep: str
    mask: str | None = None

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read and check a vocabulary file.

        Files of GluonNLP before 0.7, with the special tokens at the top level, are read too.

        Raises:
            ModelFormatError: not JSON (truncated, for example), not a vocabulary, ids twice or
                left out, or a special token that is missing.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ModelFormatError(
                f"{path}: not a vocabulary: expected JSON in UTF-8 ({error})"
            ) from None
        if not isinstance(data, dict):
            raise ModelFormatError(f"{path}: not a vocabulary: expected a JSON object")
        tokens = _read_tokens(path, data)
        special = {key: value for key, value in data.items() if key.endswith("_token")}
        identifiers = data.get("identifiers_to_tokens") or {}
        if not isinstance(identifiers, dict):
            raise ModelFormatError(f"{path}: identifiers_to_tokens is not an object")
        special.update(identifiers)

        def token(*names: str) -> str:
            # The last name with a token counts as absent too if that token has no id.
            found = next((special[name] for name in names if special.get(name) is not None), None)
            if not isinstance(found, str) or found not in tokens:
                raise ModelFormatError(
                    f"{path}: the vocabulary's {names[0]} is {found!r}; expected a token with an id"
                )
            return found

        mask = special.get("mask_token")
        return cls(
            token_to_idx=tokens,
            unknown=token("unknown_token"),
            cls=token("cls_token", "bos_token"),
            sep=token("sep_token", "eos_token"),
            mask=mask if isinstance(mask, str) and mask in tokens else None,
        )


def _read_tokens(path: Path, data: dict[str, Any]) -> dict[str, int]:
    tokens = data.get("token_to_idx")
    if not isinstance(tokens, dict) or not tokens:
        raise ModelFormatError(f"{path}: not a vocabulary: token_to_idx is missing or empty")
    by_id: list[str | None] = [None] * len(tokens)
    for token, idx in tokens.items():
        if not isinstance(idx, int) or isinstance(idx, bool) or not 0 <= idx < len(tokens):
            raise ModelFormatError(
                f"{path}: token {token!r} has the id {idx!r}; "
                f"expected the ids 0 to {len(tokens) - 1}, each once"
            )
        if by_id[idx] is not None:
            raise ModelFormatError(
                f"{path}: tokens {by_id[idx]!r} and {token!r} both have the id {idx}"
            )
        by_id[idx] = token
    listed = data.get("idx_to_token")
    if listed is not None and listed != by_id:
        raise ModelFormatError(f"{path}: idx_to_token and token_to_idx do not say the same")
    return tokens


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


class GluonTokenizer(ABC):
    """GluonNLP's ``BERTSentenceTransform``, without the padding, over one of its tokenizers."""

    lower = False

    def __init__(self, vocabulary: Vocabulary, *, max_length: int) -> None:
        self.max_length = max_length
        self.vocab_size = len(vocabulary.token_to_idx)
        self._cls = vocabulary.token_to_idx[vocabulary.cls]
        self._sep = vocabulary.token_to_idx[vocabulary.sep]
        self._tokens = sorted(vocabulary.token_to_idx, key=vocabulary.token_to_idx.__getitem__)
        self.special_ids = frozenset((self._cls, self._sep))
        self.mask = vocabulary.mask
        self.mask_id = None if self.mask is None else vocabulary.token_to_idx[self.mask]

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """See `Tokenizer.encode`. A second text without tokens counts as none, as in GluonNLP."""
        pieces = self._masked if masks else self.tokenize
        if batch and isinstance(batch[0], tuple):
            firsts = pieces([pair[0] for pair in batch])
            seconds = pieces([pair[1] for pair in batch])
        else:
            firsts = pieces([text for text in batch if isinstance(text, str)])
            seconds = [[]] * len(batch)
        return [
            self._join(i, first, second)
            for i, (first, second) in enumerate(zip(firsts, seconds, strict=True))
        ]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        pieces: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            pieces.extend(self._some_pieces(texts[start : start + _TEXTS_AT_ONCE]))
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

    def room(self, *, pair: bool) -> int:
        """See `Tokenizer.room`."""
        return self.max_length - (3 if pair else 2)

    def token(self, token_id: int) -> str:
        """See `Tokenizer.token`."""
        return self._tokens[token_id]

    @abstractmethod
    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`: what GluonNLP's own tokenizer says, ``is_first_subword``."""

    def _join(self, index: int, first: list[int], second: list[int]) -> Encoding:
        if not first:
            raise _no_token(index)
        # The room for pieces: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].
        room = self.max_length - (3 if second else 2)
        truncated = len(first) + len(second) > room
        if truncated:
            keep_first, keep_second = _truncate_pair(len(first), len(second), room)
            first, second = first[:keep_first], second[:keep_second]
        joined = self.join(first, second or None)
        return Encoding(joined.ids, joined.types, truncated)

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
        encodings = self._words.encode_batch_fast(words, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return token.startswith("##")


class BytePairTokenizer(GluonTokenizer):
    """GluonNLP's ``GPT2BPETokenizer``."""

    def __init__(
        self, vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], *, max_length: int
    ) -> None:
        """Raises ModelFormatError where a byte or the result of a merge is not in the
        vocabulary: then they do not belong together."""
        super().__init__(vocabulary, max_length=max_length)
        wanted = [*_BYTES, *(first + second for first, second in merges)]
        missing = [piece for piece in wanted if piece not in vocabulary.token_to_idx]
        if missing:
            raise ModelFormatError(
                f"the vocabulary lacks {len(missing)} of the {len(wanted)} pieces that the merges "
                f"make ({missing[0]!r} is one); they do not belong together"
            )
        self._texts = _RustTokenizer(models.BPE(vocabulary.token_to_idx, list(merges)))
        self._texts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def _some_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._texts.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return not token.startswith(_BLANK)


# The characters that stand for the 256 bytes, and the one for a blank.
_BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())
_BLANK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of byte-level BPE, from the first to the last.

    The file is that of GPT-2, which GluonNLP keeps as ``openai_webtext_bpe_ranks``: a line with its
    version, then a merge a line.

    Raises:
        ModelFormatError: not such a file, a merge twice, or one of something that is neither a byte
            nor made by a merge before it.
    """
    try:
        # Not splitlines: the characters of some bytes end lines for it.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path}: not a file of BPE merges: {error}") from None
    if len(lines) < 3 or lines[-1]:
        raise ModelFormatError(
            f"{path}: not a file of BPE merges, or truncated: expected a version and lines that end"
        )
    known = set(_BYTES)
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        match line.split():
            case [first, second] if {first, second} <= known and (first, second) not in merges:
                merges[first, second] = None
                known.add(first + second)
            case _:
                raise ModelFormatError(
                    f"{path}, line {number}: expected a new merge of two pieces that the lines "
                    f"before it make, found {line[:80]!r}"
                )
    return list(merges)


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
            self._words.load_from_serialized_proto(model.read_bytes())
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


def _truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths left when one token after the other is taken from the longer text, from the
    second where both are as long, until both fit."""
    shorter = min(first, second)
    if room - shorter > shorter:
        return (room - shorter, second) if first > second else (first, room - shorter)
    return room - room // 2, room // 2


# --- Hugging Face -----------------------------------------------------------------------------


def _read_tokenizer(path: Path) -> _RustTokenizer:
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
        self._num_special = self._tokenizer.num_special_tokens_to_add(False)
        # tokenizer.json has no name for it; these are BERT's and RoBERTa's.
        known = (mask for mask in ("[MASK]", "<mask>") if tokenizer.token_to_id(mask) is not None)
        self.mask = next(known, None)
        self.mask_id = None if self.mask is None else tokenizer.token_to_id(self.mask)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``; the truncation is not part of it."""
        content = json.loads(self._tokenizer.to_str())
        content["truncation"] = None
        return json.dumps(content, ensure_ascii=False)

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """See `Tokenizer.encode`."""
        pairs = bool(batch) and isinstance(batch[0], tuple)
        encoded: list[Encoding] = []
        for start in range(0, len(batch), _TEXTS_AT_ONCE):
            some = batch[start : start + _TEXTS_AT_ONCE]
            for encoding in self._tokenizer.encode_batch_fast(some):
                if 0 not in encoding.sequence_ids if pairs else len(encoding) <= self._num_special:
                    raise _no_token(len(encoded))
                encoded.append(
                    Encoding(
                        np.array(encoding.ids, np.int32),
                        np.array(encoding.type_ids, np.int32),
                        truncated=bool(encoding.overflowing),
                    )
                )
        return encoded

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

    def _whole(self, texts: Sequence[str]) -> Iterator[list[Any]]:
        """The library's encodings of each text, which together are all of it."""
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for encoding in self._tokenizer.encode_batch(
                texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=False
            ):
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


def _no_token(index: int) -> InvalidInputError:
    return InvalidInputError(
        f"batch[{index}]: the text is empty, or holds nothing that gives a token "
        "(white space or control characters only)"
    )
