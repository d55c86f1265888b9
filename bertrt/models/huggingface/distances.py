"""What MPNet's attention adds to a score by the distance from query to key.

A table has a row for each of 32 buckets: sixteen for the query's own place and those before it, and
sixteen for those behind it. In each half the first eight are a distance each; of the others each
ends where it begins times the root of two, and the last has no end. (transformers 5,
``models/mpnet/modeling_mpnet.py``, ``relative_position_bucket``, which is always called for 32
buckets and a `max_distance` of 128.)
"""

from __future__ import annotations

import numpy as np

__all__ = ["BUCKETS", "distance_bias"]

BUCKETS = 32
_HALF = BUCKETS // 2
_EXACT = _HALF // 2


def distance_bias(table: np.ndarray, max_length: int) -> np.ndarray:
    """The values of a table of buckets at every distance.

    Args:
        table: float32, shape (at least BUCKETS, heads).
        max_length: the tokens that a sequence may have.

    Returns:
        float32, shape (heads, 2 * max_length - 1): column ``max_length - 1 + key - query``.
    """
    buckets = [_bucket(distance) for distance in range(1 - max_length, max_length)]
    return np.ascontiguousarray(table[buckets].T)


def _bucket(distance: int) -> int:
    far = abs(distance)
    bucket = far
    if far >= _EXACT:
        # 2 log2(far / _EXACT), rounded down, in integers: nothing to round at its steps.
        doublings = (far * far // _EXACT**2).bit_length() - 1
        bucket = min(_EXACT + doublings, _HALF - 1)
    return bucket + (_HALF if distance > 0 else 0)
