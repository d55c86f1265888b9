"""The border: every kind of bad input is refused, and names its place."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from bertrt.batch import Limits, PackedBatch, pack_rows, pad_rows
from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.text.inputs import check_texts, raise_errors

LIMITS = Limits(vocab_size=10, type_vocab_size=2, max_length=6)
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 1, 2]])
TYPES = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
LENGTHS = np.array([4, 0, 2])


def padded(token_ids=IDS, token_types=TYPES, valid_length=LENGTHS, masked_positions=None):
    return PackedBatch.from_padded(token_ids, token_types, valid_length, masked_positions, LIMITS)


def ragged(token_ids, token_types=None, masked_positions=None):
    return PackedBatch.from_ragged(token_ids, token_types, masked_positions, LIMITS)


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    for name in ("token_ids", "token_types", "cu_seqlens"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype == np.int32, name
        assert left.tolist() == right.tolist(), name


def test_packing() -> None:
    batch = padded()
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 9, 0]
    assert batch.token_types.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 4, 6]
    assert batch.lengths.tolist() == [4, 0, 2]
    assert (batch.tokens, batch.seqs, batch.longest) == (6, 3, 4)
    assert_same(batch, ragged([[1, 2, 3, 4], [], [9, 0]], [np.array([0, 0, 1, 1]), [], [1, 1]]))
    sequences = PackedBatch.from_sequences(
        [np.array(row, np.int32) for row in ([1, 2, 3, 4], [], [9, 0])],
        [np.array(row, np.int32) for row in ([0, 0, 1, 1], [], [1, 1])],
    )
    assert_same(batch, sequences)


def test_defaults() -> None:
    assert padded(valid_length=None).tokens == 12
    assert padded(token_types=None).token_types.tolist() == [0] * 6
    assert ragged([[1], [2, 3]]).token_types.tolist() == [0] * 3


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64, np.float32, np.float64])
def test_dtypes(dtype: type) -> None:
    found = padded(IDS.astype(dtype), TYPES.astype(dtype), LENGTHS.astype(dtype))
    assert_same(found, padded())


@pytest.mark.parametrize("dtype", ["i1", "<i2", "<i4", "<i8", ">i4", ">i8", "<f4", "<f8"])
@pytest.mark.parametrize("bad", [-1, -128, 10, 127])
def test_dtypes_out_of_range(dtype: str, bad: int) -> None:
    ids = np.array([[1, 2, 3], [4, bad, 6]], dtype)
    message = rf"token_ids\[1, 1\] is {bad}.*; expected a whole number from 0 to 9"
    with pytest.raises(InvalidInputError, match=message):
        padded(ids, None, None)
    # The same through strides, and through a list.
    with pytest.raises(InvalidInputError, match=message):
        padded(np.repeat(ids, 2, axis=1)[:, ::2], None, [3, 3])
    with pytest.raises(InvalidInputError, match=rf"token_ids\[1\]\[1\] is {bad}"):
        ragged(list(ids))


@pytest.mark.parametrize("order", ["C", "F"])
def test_without_padding(order: Literal["C", "F"]) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]], order=order)
    for lengths in (None, [3, 3], np.ones((2, 3), bool)):
        found = padded(ids, ids % 2, lengths)
        assert found.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
        assert found.token_types.tolist() == [1, 0, 1, 0, 1, 0]
        assert found.cu_seqlens.tolist() == [0, 3, 6]
        assert not np.shares_memory(found.token_ids, ids)


def test_padding_is_not_looked_at() -> None:
    ids, types = IDS.astype(float), TYPES.astype(float)
    ids[1], ids[2, 2:], types[1] = np.nan, -1e30, 77
    assert_same(padded(ids, types), padded())


def test_round_trip(rng: np.random.Generator) -> None:
    batch = padded()
    inputs = batch.padded()
    assert inputs.pop("masked_positions").tolist() == [[0]] * 3
    assert inputs["token_ids"].tolist() == [[1, 2, 3, 4], [0] * 4, [9, 0, 0, 0]]
    assert_same(padded(**inputs), batch)
    rows = rng.standard_normal((batch.tokens, 5)).astype(np.float32)
    wide = pad_rows(rows, batch, 9)
    assert wide.shape == (3, 9, 5) and wide.dtype == np.float32
    assert not wide[0, 4:].any() and not wide[1].any() and not wide[2, 2:].any()
    assert (pack_rows(wide, batch, "tokens") == rows).all()


def test_only_empty_sequences() -> None:
    batch = padded(valid_length=[0, 0, 0])
    assert batch.tokens == 0
    shapes = [array.shape for array in batch.padded().values()]
    assert shapes == [(3, 1), (3, 1), (3,), (3, 1)]


def change(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.astype(float)
    array[index] = value
    return array


BAD_VALUES = [
    ({"token_ids": change(IDS, (0, 3), 10)}, r"token_ids\[0, 3\] is 10.0; .* 0 to 9"),
    ({"token_ids": change(IDS, (2, 1), -1)}, r"token_ids\[2, 1\] is -1.0"),
    ({"token_ids": change(IDS, (2, 0), np.nan)}, r"token_ids\[2, 0\] is nan"),
    ({"token_ids": change(IDS, (2, 0), np.inf)}, r"token_ids\[2, 0\] is inf"),
    ({"token_ids": change(IDS, (2, 0), 1.5)}, r"token_ids\[2, 0\] is 1.5"),
    ({"token_ids": IDS + 2**40}, r"token_ids\[0, 0\] is 1099511627777"),
    ({"token_ids": IDS.astype(object) + 2**70}, r"token_ids\[0, 0\] is 118059162"),
    ({"token_types": change(TYPES, (0, 2), 2)}, r"token_types\[0, 2\] is 2.0; .* 0 to 1"),
    ({"token_types": -TYPES}, r"token_types\[0, 2\] is -1"),
    ({"valid_length": [4, 5, 1]}, r"valid_length\[1\] is 5; .* 0 to 4"),
    ({"valid_length": [4, -1, 1]}, r"valid_length\[1\] is -1"),
    ({"valid_length": [4, 0.5, 1]}, r"valid_length\[1\] is 0.5"),
    ({"valid_length": [4, 4]}, r"valid_length has the shape \(2,\); expected \(3,\)"),
    ({"valid_length": 4}, r"valid_length has the shape \(\); expected 1 axis"),
    ({"valid_length": [[4], [4], [4]]}, r"valid_length has the shape \(3, 1\)"),
    ({"token_types": TYPES[:, :3]}, r"token_types has the shape \(3, 3\); expected \(3, 4\)"),
    ({"token_types": TYPES[:1]}, r"token_types has the shape \(1, 4\)"),
    ({"token_ids": IDS[0]}, r"token_ids has the shape \(4,\); expected 2 axes"),
    ({"token_ids": IDS[None]}, r"token_ids has the shape \(1, 3, 4\)"),
    ({"token_ids": IDS[:0]}, r"token_ids has the shape \(0, 4\): the batch is empty"),
    ({"token_ids": IDS[:, :0]}, "the batch is empty"),
    (
        {"token_ids": np.ones((2, 7)), "token_types": None, "valid_length": None},
        "sequence 0 has 7 tokens; the model has positions for 6",
    ),
    ({"masked_positions": [[0], [0], [0]]}, r"positions\[1, 0\] is 0; sequence 1 has 0 tokens"),
    (
        {"valid_length": [4, 1, 2], "masked_positions": [[0, 3], [0, 0], [2, 0]]},
        r"masked_positions\[2, 0\] is 2; sequence 2 has 2 tokens",
    ),
    ({"masked_positions": [[0], [-1], [0]]}, r"masked_positions\[1, 0\] is -1"),
    ({"masked_positions": [0, 0, 0]}, r"masked_positions has the shape \(3,\)"),
    ({"masked_positions": [[0]]}, r"masked_positions has the shape \(1, 1\)"),
    ({"masked_positions": np.zeros((3, 0), int)}, r"at least one position"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES, ids=[m for _, m in BAD_VALUES])
def test_bad_padded_input(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        padded(**arguments)


@pytest.mark.parametrize(
    "token_ids",
    [None, IDS.astype(bool), IDS.astype(str), IDS.astype(complex), np.array([[None, 1]]), {}],
    ids=["None", "bool", "str", "complex", "object", "dict"],
)
def test_bad_types(token_ids: object) -> None:
    with pytest.raises(InvalidTypeError, match="token_ids"):
        padded(token_ids=token_ids)


def test_an_empty_array_of_no_numbers() -> None:
    for empty in (memoryview(np.zeros(0, np.dtype([]))), np.array([], str), np.array([], bool)):
        with pytest.raises(InvalidTypeError, match="valid_length has the dtype"):
            padded(IDS, TYPES, empty)


def test_masked_positions() -> None:
    batch = padded(valid_length=[4, 1, 2], masked_positions=[[3, 0], [0, 0], [1.0, 1]])
    assert batch.masked_positions.dtype == np.int32
    assert batch.masked_positions.tolist() == [[3, 0], [0, 0], [1, 1]]


BAD_RAGGED = [
    (([],), "empty list"),
    (([[1, 2], [3, 10]],), r"token_ids\[1\]\[1\] is 10; .* 0 to 9"),
    (([[], [], [-3]],), r"token_ids\[2\]\[0\] is -3"),
    (([[1], [0] * 7],), "sequence 1 has 7 tokens"),
    (([np.array([1], object), [1.5]],), r"token_ids\[1\]\[0\] is 1.5"),
    (([np.array([1, 2**70], object), [np.nan]],), r"token_ids\[0\]\[1\] is 118059162"),
    (([np.array([1], object), [2, np.nan]],), r"token_ids\[1\]\[1\] is nan"),
    (([[np.nan], np.array([2**70], object)],), r"token_ids\[0\]\[0\] is nan"),
    (([[-np.inf], np.array([2**70], object)],), r"token_ids\[0\]\[0\] is -inf"),
    (([[2, 3], np.array([2**70], object), [np.nan, 3]],), r"token_ids\[1\]\[0\] is 118059162"),
    (([[2, np.nan, 3], [3, 4], np.array([2**70], object)],), r"token_ids\[0\]\[1\] is nan"),
    (([[1], [[2]]],), r"token_ids\[1\] has the shape \(1, 1\)"),
    (([1, 2, 3],), r"token_ids\[0\] has the shape \(\)"),
    (([[1], [2, 3]], [[0], [0]]), r"token_types\[1\] has the shape \(1,\); expected \(2,\)"),
    (([[1], [2, 3]], [[0]]), "token_types: expected a list of 2 arrays"),
    (([[1], [2, 3]], np.zeros((2, 2), int)), "token_types: expected a list of 2 arrays"),
    (([[1], [2, 3]], [[0], [0, 2]]), r"token_types\[1\]\[1\] is 2"),
    (([[1], [2, 3]], None, [[0], [2]]), r"masked_positions\[1, 0\] is 2; sequence 1 has 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_RAGGED, ids=[m for _, m in BAD_RAGGED])
def test_bad_ragged_input(arguments: tuple, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ragged(*arguments)


def test_bad_ragged_types() -> None:
    with pytest.raises(InvalidTypeError, match=r"token_ids\[1\] is None"):
        ragged([[1], None])
    with pytest.raises(InvalidTypeError, match=r"token_ids\[0\]"):
        ragged(["text"])


def test_model_without_token_types() -> None:
    """Zeros are welcome, as every script passes them; anything else would be ignored silently."""
    limits = Limits(vocab_size=10, type_vocab_size=0, max_length=6)
    PackedBatch.from_padded(IDS, TYPES * 0, None, None, limits)
    with pytest.raises(InvalidInputError, match=r"token_types\[0, 2\] is 1"):
        PackedBatch.from_padded(IDS, TYPES, None, None, limits)


# --- texts ------------------------------------------------------------------------------------


def test_texts() -> None:
    assert check_texts("a") == (["a"], True)
    assert check_texts(("a", "b")) == ([("a", "b")], True)
    assert check_texts(["a", "b"]) == (["a", "b"], False)
    assert check_texts([("a", "b")]) == ([("a", "b")], False)
    assert check_texts([("a", "")]) == ([("a", "")], False)
    assert check_texts(["é中😀"]) == (["é中😀"], False)
    assert check_texts("") == ([""], True)
    assert check_texts([("", "a"), ("", "")]) == ([("", "a"), ("", "")], False)


BAD_TEXT_VALUES = [
    ([], "the batch is empty"),
    (["a", "b\0c"], r"batch\[1\] holds a NUL character at position 1"),
    ([("a", "\0")], r"batch\[0\]\[1\] holds a NUL"),
    (["ab\ud800"], r"batch\[0\] holds a lone surrogate \(U\+D800\) at position 2"),
    ([("a", "b"), ("a", "\udfff")], r"batch\[1\]\[1\] holds a lone surrogate"),
]


@pytest.mark.parametrize(("batch", "message"), BAD_TEXT_VALUES)
def test_bad_texts(batch: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        raise_errors(check_texts(batch)[0])


BAD_TEXT_TYPES = [
    (None, "batch is None; expected a list of str"),
    (b"a", "batch is a bytes"),
    (3, "batch is a int"),
    ((text for text in ["a"]), "batch is a generator"),
    (np.array(["a", "b"]), "batch is a ndarray"),
    (("a", "b", "c"), "batch is a tuple of str, str, str"),
    (("a", None), "batch is a tuple of str, NoneType"),
    ({"a", "b"}, "batch is a set"),
    (["a", None], r"batch\[1\] is None; expected a str"),
    ([None], r"batch\[0\] is None; expected a str or a tuple \(str, str\)"),
    ([b"a"], r"batch\[0\] is a bytes"),
    (["a", 3.0], r"batch\[1\] is a float"),
    (["a", ("a", "b")], r"batch\[1\] is a pair among single texts"),
    ([("a", "b"), "a"], r"batch\[1\] is a str among pairs"),
    ([("a", None)], r"batch\[0\] is a tuple of str, NoneType"),
    ([["a", "b"]], r"batch\[0\] is a list of str, str; expected a str or a tuple"),
    ([("a", "b", "c")], r"batch\[0\] is a tuple of str, str, str"),
]


@pytest.mark.parametrize(("batch", "message"), BAD_TEXT_TYPES, ids=[m for _, m in BAD_TEXT_TYPES])
def test_bad_text_types(batch: object, message: str) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        raise_errors(check_texts(batch)[0])


def test_bad_texts_stand_in_their_places() -> None:
    found, single = check_texts(["a", "b\0", "", None, ("a", "b")])
    assert not single and (found[0], found[2]) == ("a", "")
    assert [type(found[i]) for i in (1, 3, 4)] == [
        InvalidInputError,
        InvalidTypeError,
        InvalidTypeError,
    ]
    assert [str(found[i])[:8] for i in (1, 3, 4)] == ["batch[1]", "batch[3]", "batch[4]"]
    assert all(found[i].__traceback__ is None for i in (1, 3, 4))
    # What is wanted is said by the first that is anything, or by whoever asks.
    found, _ = check_texts([None, ("a", "b"), "a"])
    assert found[1] == ("a", "b") and "expected a tuple (str, str)" in str(found[0])
    found, _ = check_texts(["a", ("a", "b")], pair=True, what="this one")
    assert found[1] == ("a", "b")
    assert str(found[0]) == "batch[0] is a text; this one takes a pair"
    found, _ = check_texts(["a", ("a", "b")], pair=False, what="this one")
    assert str(found[1]) == "batch[1] is a pair; this one takes a single text"


def test_one_error_names_all() -> None:
    with pytest.raises(InvalidInputError) as caught:
        raise_errors(check_texts(["\0", "a", "\0", "\0", "\0", "a", "\0", "\0", "\0"])[0])
    assert str(caught.value) == (
        "7 of 9 inputs cannot be answered: batch[0] holds a NUL character at position 0; "
        "batch[2] holds a NUL character at position 0; "
        "batch[3] holds a NUL character at position 0; nor can batch[4], batch[6] to batch[8]"
    )
    # The class is that of the first.
    with pytest.raises(InvalidTypeError, match=r"2 of 3 .*batch\[0\] is None.*batch\[2\] holds"):
        raise_errors(check_texts([None, "a", "\0"])[0])
    raise_errors(check_texts(["a", ""])[0])


def test_a_message_about_many_errors_can_be_read() -> None:
    with pytest.raises(InvalidInputError) as caught:
        raise_errors(check_texts(["\0", "a"] * 100_000)[0])
    message = str(caught.value)
    assert len(message) < 2000
    assert message.startswith("100000 of 200000 inputs cannot be answered: batch[0] holds")
    assert message.endswith("batch[104], and others up to batch[199998]")
