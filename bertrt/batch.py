"""The border of the system: what users pass in, checked once, and made into packed arrays.

A `PackedBatch` is ragged from end to end: all tokens of all sequences in a row, with cumulative
lengths. Backends that need padding add it privately, with `PackedBatch.padded`, `pack_rows` and
`pad_rows`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, InvalidTypeError

__all__ = [
    "Limits",
    "PackedBatch",
    "Words",
    "check_text",
    "check_texts",
    "check_words",
    "pack_rows",
    "pad_rows",
    "split_words",
]


_INT32_MAX = int(np.iinfo(np.int32).max)

# The types of integers that hold every limit.
_UNSIGNED = {np.dtype(np.int32): np.uint32, np.dtype(np.int64): np.uint64}


@dataclass(frozen=True)
class Limits:
    """What a model can take.

    Attributes:
        vocab_size: rows of the embedding matrix; token ids are below it.
        type_vocab_size: rows of the token type matrix; 0 for a model without token types.
        max_length: positions that the model has.
    """

    vocab_size: int
    type_vocab_size: int
    max_length: int

    @classmethod
    def of(cls, architecture: Mapping[str, Any]) -> Limits:
        """The limits in a plan's or manifest's ``architecture``."""
        return cls(
            architecture["vocab_size"],
            architecture["type_vocab_size"],
            architecture["max_length"],
        )


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Sequences end to end, without padding.

    The constructor trusts its arguments; `from_padded` and `from_ragged` check what users give.

    Attributes:
        token_ids: int32, shape (tokens,).
        token_types: int32, shape (tokens,).
        cu_seqlens: int32, shape (seqs + 1,): sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
        masked_positions: int32, shape (seqs, num_masked): the positions, within each sequence,
            whose tokens the masked language model is asked for; None where it is not asked.
        attended: int32, shape (seqs,): how many of a sequence's tokens, from the first, are
            attended to, the rest being padding; None for all of them.
    """

    token_ids: np.ndarray
    token_types: np.ndarray
    cu_seqlens: np.ndarray
    masked_positions: np.ndarray | None = None
    attended: np.ndarray | None = None

    @classmethod
    def from_sequences(
        cls,
        token_ids: Sequence[np.ndarray],
        token_types: Sequence[np.ndarray],
        masked_positions: np.ndarray | None = None,
    ) -> PackedBatch:
        """Pack int32 arrays of shape (length,) that are known to be right; those of a single
        sequence are taken as they are."""
        single = len(token_ids) == 1
        return cls(
            token_ids[0] if single else np.concatenate(token_ids),
            token_types[0] if single else np.concatenate(token_types),
            _cumulative([len(ids) for ids in token_ids]),
            masked_positions,
        )

    @classmethod
    def from_padded(
        cls,
        token_ids: Any,
        token_types: Any,
        valid_length: Any,
        masked_positions: Any,
        limits: Limits,
    ) -> PackedBatch:
        """Check and pack padded arrays.

        Args:
            token_ids: shape (batch, sequence); integers, or floats that hold whole numbers.
            token_types: likewise; None for all 0.
            valid_length: shape (batch,), 0 to sequence; or a mask, shape (batch, sequence), 1 at
                a sequence's tokens and 0 at the padding behind them; None where nothing is padding.
            masked_positions: shape (batch, num_masked), each below its sequence's valid length;
                or None.
            limits: what the model can take.

        Values at padding positions are ignored, whatever they are.

        Raises:
            InvalidInputError: a shape or value that cannot be; the message names index, value and
                range.
            InvalidTypeError: not an array of numbers.
        """
        ids = _numbers("token_ids", token_ids, ("batch", "sequence"))
        seqs, sequence = ids.shape
        if seqs == 0 or sequence == 0:
            raise InvalidInputError(f"token_ids has the shape {ids.shape}: the batch is empty")
        if valid_length is None:
            lengths = [sequence] * seqs
        else:
            given = _array("valid_length", valid_length)
            if given.ndim == 2:
                given = _lengths_of_mask(given, ids.shape)
            given = _numbers("valid_length", given, ("batch",))
            _same_shape("valid_length", given.shape, (seqs,))
            lengths = _whole("valid_length", given, sequence + 1, _at).tolist()
        _check_lengths(lengths, limits)
        cu_seqlens = _cumulative(lengths)
        # A single sequence seldom has padding, and without any there is nothing to pick out.
        mask = None
        if cu_seqlens[-1] != seqs * sequence:
            mask = np.arange(sequence) < np.array(lengths)[:, None]

        def at_padded(row: int) -> str:
            seq, position = divmod(row, sequence) if mask is None else np.argwhere(mask)[row]
            return f"[{seq}, {position}]"

        def pack(name: str, array: np.ndarray, limit: int) -> np.ndarray:
            packed = array.reshape(-1) if mask is None else array[mask]
            return _whole(name, packed, limit, at_padded)

        packed_ids = pack("token_ids", ids, limits.vocab_size)
        if token_types is None:
            packed_types = np.zeros(len(packed_ids), np.int32)
        else:
            types = _numbers("token_types", token_types, ("batch", "sequence"))
            _same_shape("token_types", types.shape, ids.shape)
            # A model without token types takes the zeros that everyone passes.
            packed_types = pack("token_types", types, max(1, limits.type_vocab_size))
        return cls(
            packed_ids, packed_types, cu_seqlens, _masked_positions(masked_positions, lengths)
        )

    @classmethod
    def from_ragged(
        cls,
        token_ids: Sequence[Any],
        token_types: Sequence[Any] | None,
        masked_positions: Any,
        limits: Limits,
    ) -> PackedBatch:
        """Check and pack one array of shape (length,) for each sequence.

        Arguments and errors are as for `from_padded`.
        """
        if len(token_ids) == 0:
            raise InvalidInputError("token_ids is an empty list: the batch is empty")
        ids = [_numbers(f"token_ids[{i}]", row, ("length",)) for i, row in enumerate(token_ids)]
        lengths = [len(row) for row in ids]
        _check_lengths(lengths, limits)
        cu_seqlens = _cumulative(lengths)

        def at_ragged(row: int) -> str:
            seq = int(np.searchsorted(cu_seqlens, row, side="right")) - 1
            return f"[{seq}][{row - cu_seqlens[seq]}]"

        packed_ids = _whole("token_ids", np.concatenate(ids), limits.vocab_size, at_ragged)
        if token_types is None:
            packed_types = np.zeros(len(packed_ids), np.int32)
        else:
            if not isinstance(token_types, list | tuple) or len(token_types) != len(ids):
                raise InvalidInputError(
                    f"token_types: expected a list of {len(ids)} arrays, as token_ids is"
                )
            types = [
                _numbers(f"token_types[{i}]", row, ("length",)) for i, row in enumerate(token_types)
            ]
            for i, row in enumerate(types):
                _same_shape(f"token_types[{i}]", row.shape, ids[i].shape)
            packed_types = _whole(
                "token_types",
                np.concatenate(types),
                max(1, limits.type_vocab_size),
                at_ragged,
            )
        return cls(
            packed_ids, packed_types, cu_seqlens, _masked_positions(masked_positions, lengths)
        )

    def with_padding(self, token_ids: Any, token_types: Any, limits: Limits) -> PackedBatch:
        """The same batch with its padding as tokens that nobody attends to.

        Args:
            token_ids, token_types, limits: what `from_padded` made the batch of. What stands at
                padding is clipped to what the model can take, as MXNet does.
        """
        shape = np.shape(token_ids)
        clipped = []
        for packed, given, limit in (
            (self.token_ids, token_ids, limits.vocab_size),
            (self.token_types, token_types, max(1, limits.type_vocab_size)),
        ):
            whole = np.zeros(shape, np.int32)
            if given is not None:
                whole[:] = np.clip(np.nan_to_num(np.asarray(given, np.float64)), 0, limit - 1)
            whole[_valid(self, shape[1])] = packed
            clipped.append(whole.reshape(-1))
        ends = _cumulative([shape[1]] * shape[0])
        return PackedBatch(clipped[0], clipped[1], ends, self.masked_positions, self.lengths)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.token_ids)

    @property
    def seqs(self) -> int:
        """The number of sequences."""
        return len(self.cu_seqlens) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """The length of each sequence: int32, shape (seqs,)."""
        return np.diff(self.cu_seqlens)

    def split_pairs(self, rows: np.ndarray) -> list[np.ndarray]:
        """What has a row for each pair of tokens, by sequence: (pairs, heads) to arrays (heads,
        length, length)."""
        lengths = self.lengths.astype(np.int64)
        parts = np.split(rows, np.cumsum(np.square(lengths))[:-1])
        return [
            np.ascontiguousarray(part.reshape(n, n, rows.shape[1]).transpose(2, 0, 1))
            for part, n in zip(parts, lengths.tolist(), strict=True)
        ]

    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return int(self.lengths.max())

    def padded(self) -> dict[str, np.ndarray]:
        """The batch for backends that pad, by the names of a plan's inputs.

        Returns:
            int32 arrays: ``token_ids`` and ``token_types`` (seqs, sequence), 0 at padding, the
            sequence axis being the longest length and at least 1; ``valid_length`` (seqs,);
            ``masked_positions`` (seqs, num_masked), all 0 where it is not asked for, since a graph
            wants the input even then.
        """
        shape = (self.seqs, max(1, self.longest))
        mask = _valid(self, shape[1])
        token_ids, token_types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        token_ids[mask] = self.token_ids
        token_types[mask] = self.token_types
        positions = self.masked_positions
        return {
            "token_ids": token_ids,
            "token_types": token_types,
            "valid_length": self.lengths if self.attended is None else self.attended,
            "masked_positions": (
                np.zeros((self.seqs, 1), np.int32) if positions is None else positions
            ),
        }


def pack_rows(padded: np.ndarray, batch: PackedBatch, rows: str) -> np.ndarray:
    """Drop the padding of what a backend that pads gives.

    Args:
        padded: an output; for tokens (seqs, sequence, ...), for pairs (seqs, heads, sequence,
            sequence).
        rows: what the output has a row for, as a plan says; see `Backend.run` for the result.
    """
    if rows == "tokens":
        return padded[_valid(batch, padded.shape[1])]
    if rows == "pairs":
        own = [array[:, :n, :n] for array, n in zip(padded, batch.lengths.tolist(), strict=True)]
        heads = padded.shape[1]
        return np.concatenate([array.transpose(1, 2, 0).reshape(-1, heads) for array in own])
    return padded


def pad_rows(
    rows: np.ndarray, batch: PackedBatch, sequence: int, padding: np.ndarray | None = None
) -> np.ndarray:
    """Put padding in: (tokens, ...) to (seqs, sequence, ...).

    Args:
        rows: a row for each token of the batch.
        batch: the batch.
        sequence: the length to pad to.
        padding: the row to pad with; None for zeros. It also takes the place of rows that are
            padding to the batch itself.
    """
    padded = np.zeros((batch.seqs, sequence, *rows.shape[1:]), rows.dtype)
    if padding is not None:
        padded[:] = padding
    lengths = batch.lengths if batch.attended is None else batch.attended
    attended = np.arange(sequence) < lengths[:, None]
    padded[attended] = rows if batch.attended is None else rows[attended[_valid(batch, sequence)]]
    return padded


def _valid(batch: PackedBatch, sequence: int) -> np.ndarray:
    return np.arange(sequence) < batch.lengths[:, None]


def _cumulative(lengths: Sequence[int]) -> np.ndarray:
    ends = list(itertools.accumulate(lengths, initial=0))
    if ends[-1] > _INT32_MAX:
        raise InvalidInputError(
            f"the batch holds {ends[-1]} tokens; at most {_INT32_MAX} can run at once"
        )
    return np.array(ends, np.int32)


def _array(name: str, value: Any) -> np.ndarray:
    if value is None:
        raise InvalidTypeError(f"{name} is None; expected an array of integers")
    try:
        return np.asarray(value)
    # numpy refuses rows of different lengths.
    except ValueError as error:
        raise InvalidInputError(f"{name}: not an array ({error})") from None


def _numbers(name: str, value: Any, axes: tuple[str, ...]) -> np.ndarray:
    """`value` as an array of numbers with these axes."""
    array = _array(name, value)
    if array.ndim == 1 and array.size == 0:
        # An empty Python list becomes an array of floats.
        array = array.astype(np.int64)
    # Whole numbers that no machine integer holds stay Python's; they are out of range, and no type
    # error.
    huge = array.dtype.kind == "O" and all(type(number) is int for number in array.flat)
    if array.dtype.kind not in "iuf" and not huge:
        raise InvalidTypeError(
            f"{name} has the dtype {array.dtype}; expected integers (or floats that hold whole "
            "numbers)"
        )
    if array.ndim != len(axes):
        raise InvalidInputError(
            f"{name} has the shape {array.shape}; expected {len(axes)} "
            f"{'axis' if len(axes) == 1 else 'axes'}: ({', '.join(axes)})"
        )
    return array


def _same_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InvalidInputError(
            f"{name} has the shape {found}; expected {expected}, to match token_ids"
        )


def _at(row: int) -> str:
    return f"[{row}]"


def _whole(name: str, values: np.ndarray, limit: int, at: Any) -> np.ndarray:
    """1-D `values` as int32, after checking that they are whole numbers in [0, limit); `at` turns
    a flat index into the index to name."""
    # As few passes as can be; the bad value is looked up only if there is one.
    if values.size == 0:
        good = True
    elif unsigned := _UNSIGNED.get(values.dtype):
        # Negative numbers, read as unsigned ones, are beyond every limit.
        good = int(np.maximum.reduce(values.view(unsigned))) < limit
    else:
        # NaN makes both comparisons false.
        good = bool(values.min() >= 0 and values.max() < limit)
        if good and values.dtype.kind == "f":
            good = bool((values == np.floor(values)).all())
    if not good:
        with np.errstate(invalid="ignore"):
            fits = (values >= 0) & (values < limit) & (values == np.floor(values))
        row = int(np.flatnonzero(~fits)[0])
        raise InvalidInputError(
            f"{name}{at(row)} is {values[row]}; expected a whole number from 0 to {limit - 1}"
        )
    return values.astype(np.int32)


def _lengths_of_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The lengths that a mask of ones and zeros says, where its zeros are all on the right."""
    if mask.dtype == bool:
        mask = mask.astype(np.int32)
    array = _numbers("valid_length", mask, ("batch", "sequence"))
    _same_shape("valid_length", array.shape, shape)
    sequence = shape[1]

    def at(row: int) -> str:
        return f"[{row // sequence}, {row % sequence}]"

    ones = _whole("valid_length", array.reshape(-1), 2, at).reshape(shape)
    lengths = ones.sum(axis=1)
    misplaced = np.argwhere(ones != (np.arange(sequence) < lengths[:, None]))
    if misplaced.size:
        seq, position = misplaced[0]
        raise InvalidInputError(
            f"valid_length, as a mask, is {ones[seq, position]} at [{seq}, {position}], of a row "
            f"with {lengths[seq]} ones; expected every 1 before every 0: pad on the right"
        )
    return lengths


def _check_lengths(lengths: Sequence[int], limits: Limits) -> None:
    longest = max(lengths)
    if longest > limits.max_length:
        raise InvalidInputError(
            f"sequence {lengths.index(longest)} has {longest} tokens; the model has positions for "
            f"{limits.max_length}"
        )


def _masked_positions(value: Any, lengths: Sequence[int]) -> np.ndarray | None:
    if value is None:
        return None
    positions = _numbers("masked_positions", value, ("batch", "num_masked"))
    if len(positions) != len(lengths) or positions.shape[1] == 0:
        raise InvalidInputError(
            f"masked_positions has the shape {positions.shape}; expected ({len(lengths)}, "
            "num_masked), with at least one position for each sequence"
        )
    num_masked = positions.shape[1]

    def at(row: int) -> str:
        return f"[{row // num_masked}, {row % num_masked}]"

    flat = _whole("masked_positions", positions.reshape(-1), _INT32_MAX, at)
    beyond = np.flatnonzero(flat >= np.repeat(lengths, num_masked))
    if beyond.size:
        row = int(beyond[0])
        raise InvalidInputError(
            f"masked_positions{at(row)} is {flat[row]}; sequence {row // num_masked} has "
            f"{lengths[row // num_masked]} tokens"
        )
    return flat.reshape(positions.shape)


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
