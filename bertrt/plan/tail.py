"""The tail steps: what a graph may do with its last rows, beyond what engines have kernels for.

A closed set, in numpy. They work on a row for each sequence, a few numbers each, so that a kernel
for every device would buy nothing; an engine runs the steps before them, and whoever holds its
outputs applies these. Each row depends on its own sequence only, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from bertrt.host.floats import usual_errors

__all__ = ["OVER_TOKENS", "TAIL_OPS", "apply_tail"]

Rows = np.ndarray
Fields = Mapping[str, Any]


def _softmax(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _log_softmax(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _sigmoid(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    # Neither of the two powers can overflow.
    small = np.exp(-np.abs(rows))
    return np.where(rows < 0, small, rows.dtype.type(1)) / (1 + small)


def _affine(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    return rows * rows.dtype.type(fields["factor"]) + rows.dtype.type(fields["shift"])


def _mean_tokens(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    means = np.zeros((len(cu_seqlens) - 1, rows.shape[1]), rows.dtype)
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if end > start:
            means[index] = rows[start:end].sum(axis=0) / rows.dtype.type(end - start)
    return means


def _max_tokens(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    largest = np.zeros((len(cu_seqlens) - 1, rows.shape[1]), rows.dtype)
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if end > start:
            largest[index] = rows[start:end].max(axis=0)
    return largest


def _normalize(fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return rows / np.maximum(norms, rows.dtype.type(fields["eps"]))


_FUNCTIONS: dict[str, Callable[[Fields, Rows, np.ndarray], Rows]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "sigmoid": _sigmoid,
    "affine": _affine,
    "mean_tokens": _mean_tokens,
    "max_tokens": _max_tokens,
    "normalize": _normalize,
}
TAIL_OPS = frozenset(_FUNCTIONS)
# Those that make a row of a sequence's rows of tokens
OVER_TOKENS = ("mean_tokens", "max_tokens")


def apply_tail(op: str, fields: Fields, rows: Rows, cu_seqlens: np.ndarray) -> Rows:
    """The result of one tail step, in the precision of its operand.

    Args:
        op: one of `TAIL_OPS`.
        fields: the step's fields.
        rows: (seqs, width), or for those of `OVER_TOKENS` (tokens, width).
        cu_seqlens: (seqs + 1,): sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Returns:
        (seqs, width).
    """
    with usual_errors():
        return _FUNCTIONS[op](fields, rows, cu_seqlens)
