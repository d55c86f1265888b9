"""The border of the system: what users pass in, checked once, and made into packed arrays.

A `PackedBatch` is ragged from end to end: all tokens of all sequences in a row, with cumulative
lengths. Backends that need padding add it privately, with `PackedBatch.padded`, `pack_rows` and
`pad_rows`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, InvalidTypeError

__all__ = ["Limits", "PackedBatch", "pack_rows", "pad_rows"]

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
                a sequence's tokens, of which it has one or more, and 0 at the padding behind them;
                None where nothing is padding.
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

    @property
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
        # Of our own: another thread may write to it between the checks and the run.
        return np.asarray(value).copy()
    # numpy refuses rows of different lengths.
    except ValueError as error:
        raise InvalidInputError(f"{name}: not an array ({error})") from None


def _numbers(name: str, value: Any, axes: tuple[str, ...]) -> np.ndarray:
    """`value` as an array of numbers with these axes."""
    array = _array(name, value)
    if array.ndim == 1 and array.size == 0 and array.dtype.kind == "f":
        # As an empty Python list becomes one.
        array = array.astype(np.int64)
    # Whole numbers that no machine integer holds stay Python's; they are out of range, and no type
    # error.
    huge = array.dtype.kind == "O" and all(type(number) is int for number in array.flat)
    if huge:
        # Others are like those of an array of integers.
        with suppress(OverflowError):
            array = array.astype(np.int64)
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

    def fits(value: float) -> bool:  # as Python's number; NaN is not above 0
        return 0 <= value < limit and value == int(value)

    # As few passes as can be; the bad value is looked up only if there is one.
    if values.size == 0:
        good = True
    elif values.dtype.kind == "O":  # the largest of numbers with NaN among them is anything
        good = all(map(fits, values.tolist()))
    elif unsigned := _UNSIGNED.get(values.dtype):
        # Negative numbers, read as unsigned ones, are beyond every limit.
        good = int(np.maximum.reduce(values.view(unsigned))) < limit
    else:
        # NaN makes both comparisons false.
        with np.errstate(invalid="ignore"):
            good = bool(values.min() >= 0 and values.max() < limit)
        if good and values.dtype.kind == "f":
            good = bool((values == np.floor(values)).all())
    if not good:
        row = next(row for row, value in enumerate(values.tolist()) if not fits(value))
        raise InvalidInputError(
            f"{name}{at(row)} is {values[row]}; expected a whole number from 0 to {limit - 1}"
        )
    return values.astype(np.int32, copy=False)


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
    # Whoever means a sequence without tokens says its length; models attend to all of a row whose
    # mask hides all of it.
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise InvalidInputError(
            f"valid_length, as a mask, has no 1 in row {empty[0]}; expected one or more: leave out "
            "a sequence without tokens, or give lengths, of which 0 says that there are none"
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
