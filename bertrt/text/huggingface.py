"""A ``tokenizer.json`` with Hugging Face's rules, special and added tokens included: the kind
"huggingface".
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as _RustTokenizer
from tokenizers import models

from bertrt.errors import ModelFormatError
from bertrt.text.encoding import Encoding, Pieces, Text, some_at_once, text_pieces
from bertrt.text.prefix import long_ones, shorten
from bertrt.text.threads import with_or_without_threads
from bertrt.text.tokenizer_json import refusing

__all__ = ["HuggingFaceTokenizer", "Rules"]

# The mask's names that a tokenizer.json without further word is searched for: BERT's and RoBERTa's.
_MASKS = ("[MASK]", "<mask>")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What decides ids and types, and what a ``tokenizer.json`` has no place for.

    Attributes:
        mask: the token that stands for a word to be guessed; None where there is none.
        types: whether the second text of a pair has type 1; otherwise all types are 0.
        truncation_side: the side that loses tokens of a text that is too long, "left" or "right".
        split_special_tokens: whether a special token that a text spells out is text.
        padding_id: the id that stands for padding wherever it is, where the model has no place for
            such a token within a text; None where it is a token like others.
    """

    mask: str | None
    types: bool = True
    truncation_side: str = "right"
    split_special_tokens: bool = False
    padding_id: int | None = None

    @classmethod
    def usual(cls, tokenizer: _RustTokenizer) -> Rules:
        """The rules of a ``tokenizer.json`` of which nothing more is known."""
        known = (mask for mask in _MASKS if tokenizer.token_to_id(mask) is not None)
        return cls(next(known, None))

    @classmethod
    def read(cls, said: Mapping[str, Any], tokenizer: _RustTokenizer) -> Rules:
        """The rules that a bundle's manifest says, the usual ones where it is silent;
        ModelFormatError for one that is not known or not what it should be."""
        for name, value in said.items():
            fits = {
                "mask": value is None
                or (isinstance(value, str) and tokenizer.token_to_id(value) is not None),
                "types": isinstance(value, bool),
                "truncation_side": value in ("left", "right"),
                "split_special_tokens": isinstance(value, bool),
                "padding_id": type(value) is int and value >= 0,
            }
            if not fits.get(name, False):
                raise ModelFormatError(
                    f"tokenizer settings: the rule {name!r} is {value!r}, which is not known"
                )
        return dataclasses.replace(cls.usual(tokenizer), **said)


# Special tokens with their types, then a text by its number, if there is one, and its type
_Frame = tuple[list[tuple[int, int]], int | None, int]


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, which it makes its own: truncated to `max_length`
    the way transformers does it (longest_first), and never padded.

    Args:
        tokenizer: the library's.
        max_length: the most tokens of a sequence, special ones included.
        rules: what the library's tokenizer does not hold; `Rules.usual` if left out.
    """

    def __init__(
        self, tokenizer: _RustTokenizer, *, max_length: int, rules: Rules | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.rules = rules or Rules.usual(tokenizer)
        normalizer = tokenizer.normalizer
        self.lower = normalizer is not None and _lowers(json.loads(normalizer.__getstate__()))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = self.rules.split_special_tokens
        self._frames = self._frame(False), self._frame(True)
        kinds = [
            token_type
            for frame in self._frames
            for special, _, text_type in frame
            for token_type in (text_type, *(special_type for _, special_type in special))
        ]
        self._typed = any(kinds) or not kinds
        self.special_ids = frozenset(
            token_id for frame in self._frames for special, _, _ in frame for token_id, _ in special
        )
        # Unigram has none, and BPE may have an empty one.
        self._prefix = getattr(tokenizer.model, "continuing_subword_prefix", None) or None
        self._tokenizer.enable_truncation(
            max_length, strategy="longest_first", direction=self.rules.truncation_side
        )
        self._parts_at_blanks = self.rules.truncation_side == "right" and _parts_at_blanks(
            tokenizer
        )
        self.mask = self.rules.mask
        self.padding_id = self.rules.padding_id
        self.truncation_side = self.rules.truncation_side
        self.mask_id = None if self.mask is None else tokenizer.token_to_id(self.mask)

    # A tenth of a load, which few requests ever ask for.
    @functools.cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def unusual(self) -> dict[str, Any]:
        """What a bundle's manifest has to say beside `to_json`: the rules that are not the usual
        ones, and "exact_scores" for the model whose numbers count (see `read_tokenizer`)."""
        usual = Rules.usual(self._tokenizer)
        said = {
            name: value
            for name, value in dataclasses.asdict(self.rules).items()
            if value != getattr(usual, name)
        }
        if not self._typed:
            said.pop("types", None)
        if isinstance(self._tokenizer.model, models.Unigram):
            said["exact_scores"] = True
        return said

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``; the truncation and `rules` are not part of it."""
        content = json.loads(self._tokenizer.to_str())
        content["truncation"] = None
        if self.rules.split_special_tokens:
            # The library keeps apart which tokens are special, and what the last one to add a token
            # said of it: it writes the latter, and goes by the former.
            for token in content["added_tokens"]:
                token["special"] |= self._plain_ids(token["content"]) != [token["id"]]
        return json.dumps(content, ensure_ascii=False)

    def limit(self, max_length: int) -> None:
        """See `Tokenizer.limit`."""
        self.max_length = max_length
        truncation = self._tokenizer.truncation or {}
        self._tokenizer.enable_truncation(**{**truncation, "max_length": max_length})

    def encode(self, batch: Sequence[Text], *, masks: bool = False) -> list[Encoding]:
        """See `Tokenizer.encode`."""
        if self._parts_at_blanks:
            batch = self._shortened(batch)
        if self._frames[1] and not all(isinstance(text, str) for text in batch):
            return self._encode_with_pairs(batch)
        return [
            self._encoding(encoding.ids, encoding.type_ids, truncated=bool(encoding.overflowing))
            for some in some_at_once(batch)
            for encoding in self._run(self._tokenizer.encode_batch_fast, some)
        ]

    def _shortened(self, batch: Sequence[Text]) -> Sequence[Text]:
        """The batch, its long texts shortened as far as that changes nothing."""
        pairs = bool(batch) and isinstance(batch[0], tuple)
        flat = [text for item in batch for text in (item if isinstance(item, tuple) else (item,))]
        texts = {i: flat[i] for i in long_ones(flat, self.max_length)}
        if pairs and texts:
            # Which of two long texts loses one token more depends on which of them is longer.
            texts = {i: text for i, text in texts.items() if i ^ 1 not in texts}
            others = self._exceed([flat[i ^ 1] for i in texts])
            texts = {i: texts[i] for i, much in zip(texts, others, strict=True) if not much}
        if not texts:
            return batch
        for i, part in shorten(texts, self.max_length, self._exceed).items():
            flat[i] = part
        return list(zip(flat[::2], flat[1::2], strict=True)) if pairs else flat

    def _exceed(self, texts: list[str]) -> list[bool]:
        """Whether each text alone gives more than `max_length` tokens, special ones not counted."""
        plain = functools.partial(self._tokenizer.encode_batch_fast, add_special_tokens=False)
        return [bool(encoding.overflowing) for encoding in self._run(plain, texts)]

    def _encode_with_pairs(self, batch: Sequence[Text]) -> list[Encoding]:
        """What `encode` gives. Of a pair that it cuts, the library makes what was cut away as
        well, every piece of one text with every piece of the other: gigabytes for two long ones.
        """
        texts = [side for text in batch for side in ((text,) if isinstance(text, str) else text)]
        ids = iter(self.tokenize(texts))
        found = []
        for text in batch:
            first = next(ids)
            second = None if isinstance(text, str) else next(ids)
            room = self.room(pair=second is not None)
            lengths = _longest_first(len(first), 0 if second is None else len(second), room)
            cut, other = self._cut(first, lengths[0]), None
            if second is not None:
                other = self._cut(second, lengths[1])
            joined = self.join(cut, other)
            truncated = len(first) + len(second or ()) > room
            found.append(dataclasses.replace(joined, truncated=truncated))
        return found

    def _cut(self, ids: list[int], length: int) -> list[int]:
        if self.rules.truncation_side == "right":
            return ids[:length]
        return ids[len(ids) - length :]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        fast = self._tokenizer.encode_batch_fast
        return [
            [piece for part in parts for piece in part.ids] for parts in self._whole(texts, fast)
        ]

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

    def _whole(
        self, texts: Sequence[str], encode: Callable[..., list[Any]] | None = None
    ) -> Iterator[list[Any]]:
        """The library's encodings of each text, which together are all of it; `encode` is what
        makes them, unless they need their places in the text."""
        encode = encode or self._tokenizer.encode_batch
        for some in some_at_once(texts):
            plain = functools.partial(encode, add_special_tokens=False)
            for encoding in self._run(plain, some):
                # What is beyond the maximum length comes in further encodings, from the side that
                # is kept to the other one.
                parts = [encoding, *encoding.overflowing]
                yield parts if self.rules.truncation_side == "right" else parts[::-1]

    def _plain_ids(self, text: str) -> list[int]:
        """The ids of a text that is not cut, without special tokens before and behind it."""
        plain = functools.partial(self._tokenizer.encode_batch, add_special_tokens=False)
        (encoding,) = self._run(plain, [text])
        return list(encoding.ids)

    @staticmethod
    def _run(encode: Callable[[Any], list[Any]], texts: Any) -> list[Any]:
        with refusing("the tokenizer cannot encode a text"):
            return with_or_without_threads(encode, texts)

    def room(self, *, pair: bool) -> int:
        """See `Tokenizer.room`."""
        return self.max_length - self._tokenizer.num_special_tokens_to_add(pair)

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Encoding:
        """See `Tokenizer.join`."""
        texts = [first] if second is None else [first, second]
        ids: list[int] = []
        types: list[int] = []
        frame = self._frames[len(texts) - 1]
        if not frame:
            raise ModelFormatError(
                "the tokenizer's post-processor leaves the text out, or its vocabulary has no word"
            )
        for special, text, text_type in frame:
            ids += [token_id for token_id, _ in special]
            types += [token_type for _, token_type in special]
            if text is not None:
                ids += texts[text]
                types += [text_type] * len(texts[text])
        return self._encoding(ids, types, truncated=False)

    def _encoding(self, ids: list[int], types: list[int], *, truncated: bool) -> Encoding:
        kinds = np.array(types, np.int32) if self.rules.types else np.zeros(len(ids), np.int32)
        return Encoding(np.array(ids, np.int32), kinds, truncated)

    def token(self, token_id: int) -> str:
        """See `Tokenizer.token`."""
        return str(self._tokenizer.id_to_token(token_id))

    def continues(self, token: str) -> bool:
        """See `Tokenizer.continues`."""
        return self._prefix is not None and token.startswith(self._prefix)

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    def _frame(self, pair: bool) -> list[_Frame]:
        """How one text, or a pair, stands among special tokens: for each text the special tokens
        before it, its number and its token type; then those behind the last.

        The library only shows it by doing it, to a text that gives a token.
        """
        for probe in self._probes():
            try:
                (encoding,) = self._run(
                    self._tokenizer.encode_batch, [(probe, probe) if pair else probe]
                )
                plain = self._plain_ids(probe)
            except ModelFormatError:  # no word of a vocabulary without an unknown token
                continue
            # A post-processor need not take up every text.
            owned = list(zip(encoding.ids, encoding.sequence_ids, strict=True))
            if plain and all(
                [i for i, own in owned if own == text] == plain for text in range(1 + pair)
            ):
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

    def _probes(self) -> Iterator[str]:
        """Texts of which one should give a token."""
        yield "a"
        yield from itertools.islice(self._tokenizer.get_vocab(), 30)


def _parts_at_blanks(tokenizer: _RustTokenizer) -> bool:
    """Whether white space ends a word, whatever stands around it, and the tokens of a word are its
    own: see `bertrt.text.prefix`. Known of BERT's rules, unless a token spells white space out."""

    def kind(part: Any) -> str | None:
        return None if part is None else str(json.loads(part.__getstate__())["type"])

    return (
        isinstance(tokenizer.model, models.WordPiece)
        and kind(tokenizer.pre_tokenizer) == "BertPreTokenizer"
        and kind(tokenizer.normalizer) in (None, "BertNormalizer")
        and not any(
            any(map(str.isspace, token.content))
            for token in tokenizer.get_added_tokens_decoder().values()
        )
    )


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts of these lengths goes into so many tokens, by transformers' rule
    "longest_first": the longer one loses tokens until they are equal, then both do; of an odd
    number the one that was longer, or else the second, has one more."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return (short, long) if first <= second else (long, short)


def _lowers(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer, as the library writes it down, lower-cases."""
    kind = normalizer["type"]
    if kind == "Sequence":
        return any(map(_lowers, normalizer["normalizers"]))
    return kind == "Lowercase" or (kind == "BertNormalizer" and bool(normalizer["lowercase"]))
