"""Vectors of fewer bits, by the rules of `quantize_embeddings` of sentence-transformers 6."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bertrt.errors import BertrtWarning, InvalidInputError, InvalidTypeError

__all__ = ["VECTOR_PRECISIONS", "quantize_vectors"]

VECTOR_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")

# sentence-transformers warns where ranges come from fewer vectors.
_FEW = 100


def quantize_vectors(
    vectors: Any, precision: str, *, ranges: Any = None, calibration: Any = None
) -> np.ndarray:
    """Vectors in another precision, value for value as `quantize_embeddings` of
    sentence-transformers makes them.

    "binary" and "ubinary" keep a bit of every number, whether it is above 0: what becomes of a
    vector depends on that vector alone. "int8" and "uint8" cut the range of each column into 256
    steps, and numbers outside it to its ends. Where the ranges come from the vectors at hand, the
    same vector has other numbers in another batch: whoever quantises batch by batch, as a server
    does, gives `ranges` or `calibration`, the same ones always.

    Args:
        vectors: floating-point numbers, shape (width,) or (n, width), n from 0.
        precision: one of `VECTOR_PRECISIONS`.
        ranges: for int8 and uint8, shape (2, width): the least number of each column, and the
            greatest. The other precisions need none and ignore them.
        calibration: in the place of `ranges`, vectors to take them from, shape (n, width), n from
            1. With neither, `vectors` are, of which there must be two; a BertrtWarning says so
            where they are fewer than 100.

    Returns:
        float32, int8 or uint8 of the shape of `vectors`; of "binary" int8 and of "ubinary" uint8,
        shape (..., ceil(width / 8)): eight columns a byte, the first in the highest bit, zeros
        behind the last. A byte of "binary" is that of "ubinary" less 128.

    Raises:
        InvalidInputError: an unknown precision, other shapes, a number that is NaN, infinite or
            beyond float32, ranges whose ends are swapped, ranges and calibration together, or
            neither for a single vector.
        InvalidTypeError: no array of floating-point numbers.
    """
    if not isinstance(precision, str):
        raise InvalidTypeError(f"precision is a {type(precision).__name__}; expected a str")
    if precision not in VECTOR_PRECISIONS:
        raise InvalidInputError(
            f"precision is {precision!r}; expected one of {', '.join(VECTOR_PRECISIONS)}"
        )
    found = _numbers("vectors", vectors)
    if found.ndim not in (1, 2) or not found.shape[-1]:
        raise InvalidInputError(
            f"vectors have the shape {found.shape}; expected (width,) or (n, width)"
        )
    if precision == "float32":
        return found.astype(np.float32)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(found > 0, axis=-1)
        return bits if precision == "ubinary" else _signed(bits)
    width = found.shape[-1]
    if ranges is not None and calibration is not None:
        raise InvalidInputError("ranges and calibration are both given; expected one of them")
    if ranges is not None:
        ends = _numbers("ranges", ranges)
        if ends.shape != (2, width):
            raise InvalidInputError(
                f"ranges have the shape {ends.shape}; expected (2, {width}), the least and the "
                "greatest number of each column"
            )
    elif calibration is not None:
        ends = _ends(_numbers("calibration", calibration), width)
    elif len(found) == 0:
        return np.zeros(found.shape, np.dtype(precision))
    else:
        ends = _own_ends(found, precision)
    ends = ends.astype(np.float32)
    if (swapped := ends[0] > ends[1]).any():
        column = int(swapped.argmax())
        raise InvalidInputError(
            f"ranges of column {column} go from {ends[0, column]} to {ends[1, column]}; expected "
            "the least number first"
        )
    # A column of one number has steps of 1, and so has all of it in the first.
    with np.errstate(over="ignore"):
        steps = (ends[1] - ends[0]) / 255
    if not np.isfinite(steps).all():
        raise InvalidInputError("ranges are wider than float32 can tell")
    steps = np.where(steps == 0, np.float32(1), steps)
    with np.errstate(over="ignore"):  # far beyond a narrow range: clipped
        levels = np.clip(np.floor((found - ends[0]) / steps), 0, 255).astype(np.uint8)
    return levels if precision == "uint8" else _signed(levels)


def _signed(levels: np.ndarray) -> np.ndarray:
    """0 to 255 as -128 to 127."""
    return (levels ^ np.uint8(128)).view(np.int8)


def _numbers(what: str, given: Any) -> np.ndarray:
    try:
        found = np.asarray(given)
    except ValueError as error:  # rows of several lengths
        raise InvalidTypeError(f"{what} are no array: {error}") from None
    if found.dtype.kind != "f":
        raise InvalidTypeError(
            f"{what} are no array of floating-point numbers, but of {found.dtype}"
        )
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(found.astype(np.float32))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InvalidInputError(
            f"{what}: the number at {place} is {found[place]}; expected finite ones, as float32 "
            "has them"
        )
    return found


def _own_ends(vectors: np.ndarray, precision: str) -> np.ndarray:
    if vectors.ndim == 1 or len(vectors) == 1:
        raise InvalidInputError(
            f"a single vector has no ranges for {precision}: give ranges, or calibration vectors "
            "to take them from"
        )
    if len(vectors) < _FEW:
        warnings.warn(
            f"{precision} by the ranges of {len(vectors)} vectors: other vectors with them give "
            f"others. Give ranges, or calibration: {_FEW} vectors or more",
            BertrtWarning,
            stacklevel=3,
        )
    return _ends(vectors, vectors.shape[-1])


def _ends(vectors: np.ndarray, width: int) -> np.ndarray:
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise InvalidInputError(
            f"calibration has the shape {vectors.shape}; expected (n, {width}), n from 1"
        )
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])
