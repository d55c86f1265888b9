"""Vectors of fewer bits: values by hand, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import bertrt
from bertrt import quantize_vectors
from bertrt.vectors import VECTOR_PRECISIONS

RANGES = np.array([[0.0, -1.0, 5.0], [255.0, 254.0, 5.0]], np.float32)


def test_float32_stays() -> None:
    vectors = np.array([[0.1, -0.0, 3e38]], np.float32)
    found = quantize_vectors(vectors, "float32")
    assert found.dtype == np.float32 and found.tobytes() == vectors.tobytes()
    assert found is not vectors


def test_a_column_is_cut_into_256_steps() -> None:
    vectors = np.array([[0.0, -1.0, 5.0], [254.5, 126.0, 6.5], [255.0, 254.0, 4.0]], np.float32)
    found = quantize_vectors(vectors, "uint8", ranges=RANGES)
    # A constant column has steps of 1 from its number on.
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 0, 0], [254, 127, 1], [255, 255, 0]]
    signed = quantize_vectors(vectors, "int8", ranges=RANGES)
    assert signed.dtype == np.int8
    assert signed.tolist() == [[-128, -128, -128], [126, -1, -127], [127, 127, -128]]


def test_what_is_outside_its_range_is_cut() -> None:
    far = np.array([[-3e38, 3e38, 3e38]], np.float32)
    assert quantize_vectors(far, "uint8", ranges=RANGES).tolist() == [[0, 255, 255]]
    narrow = np.array([[0.0], [1e-30]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quantize_vectors(np.array([[3e38]], np.float32), "uint8", ranges=narrow)
    assert found.tolist() == [[255]]


def test_bits_fill_bytes_from_the_left() -> None:
    vectors = np.array([[1, -1, 0, 2, -0.0, 1e-30, -5, 1, 1]], np.float32)
    found = quantize_vectors(vectors, "ubinary")
    assert found.dtype == np.uint8 and found.tolist() == [[0b10010101, 0b10000000]]
    signed = quantize_vectors(vectors, "binary")
    assert signed.dtype == np.int8 and signed.tolist() == [[0b10010101 - 128, 0]]
    assert quantize_vectors(vectors[0], "ubinary").tolist() == found[0].tolist()


def test_binary_depends_on_a_vector_alone_and_int8_without_ranges_does_not() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    for precision in ("binary", "ubinary"):
        alone = np.concatenate([quantize_vectors(v[None], precision) for v in vectors])
        assert (alone == quantize_vectors(vectors, precision)).all()
    assert (
        quantize_vectors(vectors, "int8")[:150] != quantize_vectors(vectors[:150], "int8")
    ).any()
    ends = np.stack([vectors.min(0), vectors.max(0)])
    for given in ({"ranges": ends}, {"calibration": vectors}):
        alone = np.concatenate([quantize_vectors(v[None], "int8", **given) for v in vectors])
        assert (alone == quantize_vectors(vectors, "int8")).all()
        assert (quantize_vectors(vectors[3], "int8", **given) == alone[3]).all()


@pytest.mark.parametrize("precision", VECTOR_PRECISIONS)
def test_no_vectors(precision: str) -> None:
    found = quantize_vectors(np.zeros((0, 9), np.float32), precision)
    assert found.shape == (0, 2 if precision.endswith("binary") else 9)


def test_few_vectors_are_warned_of() -> None:
    with pytest.warns(bertrt.BertrtWarning, match="the ranges of 99 vectors"):
        quantize_vectors(np.zeros((99, 2), np.float32), "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_vectors(np.zeros((100, 2), np.float32), "int8")
        quantize_vectors(np.zeros((2, 2), np.float32), "int8", calibration=np.ones((1, 2)))


@pytest.mark.parametrize(
    ("vectors", "precision", "more", "told"),
    [
        ([[1.0, np.nan]], "binary", {}, r"vectors: the number at \(0, 1\) is nan"),
        ([[1.0], [np.inf]], "float32", {}, r"at \(1, 0\) is inf"),
        ([1e300], "int8", {}, "as float32 has them"),
        ([[1.0]], "int4", {}, "'int4'; expected one of float32, int8"),
        ([[1.0]], "int8", {}, "a single vector has no ranges for int8"),
        ([1.0, 2.0], "uint8", {}, "a single vector"),
        ([[[1.0]]], "int8", {}, r"shape \(1, 1, 1\)"),
        ([[], []], "int8", {}, r"shape \(2, 0\)"),
        ([], "binary", {}, r"shape \(0,\)"),
        ([[1.0]], "int8", {"ranges": [[0.0, 1.0]]}, r"ranges .* expected \(2, 1\)"),
        ([[1.0]], "int8", {"ranges": [[1.0], [0.0]]}, "column 0 go from 1.0 to 0.0"),
        ([[1.0]], "int8", {"ranges": [[0.0], [np.nan]]}, "ranges: the number"),
        ([[1.0]], "int8", {"ranges": [[-3e38], [3e38]]}, "wider than float32"),
        ([[1.0]], "int8", {"calibration": [[1.0, 2.0]]}, r"calibration .* expected \(n, 1\)"),
        ([[1.0]], "int8", {"calibration": np.zeros((0, 1))}, "n from 1"),
        ([[1.0]], "int8", {"ranges": [[0.0], [1.0]], "calibration": [[1.0]]}, "both given"),
    ],
)
def test_what_is_refused(vectors, precision, more, told) -> None:
    with pytest.raises(bertrt.InvalidInputError, match=told):
        quantize_vectors(vectors, precision, **more)


@pytest.mark.filterwarnings("ignore:Creating an ndarray from ragged")
def test_what_is_no_number_is_refused() -> None:
    for vectors in ([[1, 2]], [["a"]], np.zeros((2, 2), np.int8), None, [[1.0], [2.0, 3.0]]):
        with pytest.raises(bertrt.InvalidTypeError, match="vectors are no array"):
            quantize_vectors(vectors, "binary")
    with pytest.raises(bertrt.InvalidTypeError, match="precision is a NoneType"):
        quantize_vectors([1.0], None)
