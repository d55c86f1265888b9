"""Quantised vectors, value for value those of sentence-transformers."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from bertrt import BertrtWarning, InvalidInputError, quantize_vectors
from bertrt.vectors import VECTOR_PRECISIONS

# Version 5 rounded otherwise.
pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers.util.quantization import quantize_embeddings


def _draws():
    random = np.random.default_rng(0)
    for width, count in itertools.product((1, 7, 8, 9, 384), (2, 3, 150)):
        for scale in (1e-30, 1.0, 1e30):
            yield (random.normal(0, 1, (count, width)) * scale).astype(np.float32)
    for dtype in (np.float16, np.float64):
        yield random.normal(0, 1, (120, 20)).astype(dtype)
    constant = random.normal(0, 1, (120, 20)).astype(np.float32)
    constant[:, ::3] = 0.25
    constant[:, 1] = 0
    yield constant
    yield np.float32([[0.0, -0.0, 1e-45, -1e-45, 1, -1], [1, 1, 0, 0, -0.0, 3e38]])
    steps = np.float32([[-1.0], [1.0]]) + np.arange(256, dtype=np.float32)[None] / 128
    yield np.ascontiguousarray(steps.T)


def _same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("precision", VECTOR_PRECISIONS)
@pytest.mark.filterwarnings("ignore::bertrt.BertrtWarning")
def test_batches(precision: str) -> None:
    for vectors in _draws():
        _same(quantize_vectors(vectors, precision), quantize_embeddings(vectors, precision))
        _same(
            quantize_vectors(list(vectors), precision),
            quantize_embeddings(list(vectors), precision),
        )
        empty = vectors[:0]
        _same(quantize_vectors(empty, precision), quantize_embeddings(empty, precision))


@pytest.mark.parametrize("precision", VECTOR_PRECISIONS)
def test_ranges_and_calibration(precision: str) -> None:
    random = np.random.default_rng(1)
    for vectors in _draws():
        wide = (vectors * random.uniform(0.2, 2)).astype(vectors.dtype)
        ends = np.stack([wide.min(axis=0), wide.max(axis=0)])
        for given, theirs in (
            ({"ranges": ends}, {"ranges": ends}),
            ({"calibration": wide}, {"calibration_embeddings": wide}),
            ({"calibration": wide[:1]}, {"calibration_embeddings": wide[:1]}),
        ):
            # One vector as a row and as itself, and all of them.
            for some in (vectors, vectors[:1], vectors[1]):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    expected = quantize_embeddings(some, precision, **theirs)
                _same(quantize_vectors(some, precision, **given), expected)


def test_what_both_refuse_or_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    one = np.ones((1, 4), np.float32)
    for quantize, error in (
        (quantize_vectors, InvalidInputError),
        (quantize_embeddings, ValueError),
    ):
        with pytest.raises(error, match="single"):
            quantize(one, "int8")
    for count in (99, 100):
        caplog.clear()
        vectors = np.zeros((count, 4), np.float32)
        quantize_embeddings(vectors, "int8")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", BertrtWarning)
            quantize_vectors(vectors, "int8")
        assert len(caught) == len(caplog.records) == (count == 99)
