"""Vectors, as the protocols for embeddings want them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertrt.serve.refusals import Refusal
from bertrt.serve.served import Answered

__all__ = ["check_dimensions", "check_finite", "normalize", "shorten", "vectors"]

# A vector is divided by this where its norm is smaller, as in PyTorch's normalize.
_LEAST_NORM = np.float32(1e-12)


def vectors(answered: Answered) -> list[np.ndarray]:
    """The vector of each text, float32, shape (width,).

    Raises:
        Refusal: that of the first input that has one; 424 the model gives a vector for each token
            or word; 500 a vector holds what is no number.
    """
    found = [result.vector for result in answered.whole()]
    for vector in found:
        if vector.ndim != 1:
            raise Refusal(
                424, "the model gives a vector for each token or word of a text, and not one for it"
            )
        check_finite(vector)
    return found


def check_finite(answer: Any) -> None:
    """Refuse, with 500, an answer with numbers that JSON does not have: infinity and what is no
    number. It may be a number, an array, or what `bertrt.results.plain` makes of a result."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        for one in answer:
            check_finite(one)
    elif isinstance(answer, (float, np.ndarray, np.floating)) and not np.isfinite(answer).all():
        raise Refusal(500, "the model's answer holds numbers that are not finite")


def check_dimensions(dimensions: int | None) -> None:
    """Refuse, with 422, a width that no vector has."""
    if dimensions is not None and dimensions < 1:
        raise Refusal(422, f"dimensions is {dimensions}; expected a whole number from 1")


def shorten(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first of its numbers, with length 1; where that are all, the vector as it is.

    Raises:
        Refusal: 422 it has not so many.
    """
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise Refusal(
            422, f"dimensions is {dimensions}, and the model's vectors have {len(vector)}"
        )
    return normalize(vector[:dimensions])


def normalize(vector: np.ndarray) -> np.ndarray:
    """A vector with length 1, float32; zeros stay zeros.

    Raises:
        Refusal: 500 its length is beyond float32: all would be zeros.
    """
    with np.errstate(over="ignore"):
        norm = np.sqrt(np.add.reduce(np.square(vector)))
    check_finite(norm)
    return np.asarray(vector / np.maximum(norm, _LEAST_NORM))
