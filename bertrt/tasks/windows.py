"""Windows: a text that is longer than the model, cut into sequences that the model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["cut_windows", "overlapping", "stitch_rows"]


def cut_windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Where each window begins and ends: `room` tokens or what is left of them, and the next one
    `stride` tokens on, or directly behind where a window is shorter than that."""
    windows = []
    begin = 0
    while True:
        end = min(begin + room, tokens)
        windows.append((begin, end))
        if end == tokens:
            return windows
        begin += min(end - begin, stride)


def overlapping(room: int) -> int:
    """The longest stride with which every window shows half of the one before it, so that what
    has up to half a window's tokens stands in one window as a whole, wherever it is."""
    return max(1, room // 2)


def stitch_rows(
    parts: Sequence[np.ndarray], windows: Sequence[tuple[int, int]], before: int
) -> np.ndarray:
    """A row for each token of a text: of windows that overlap, the row of the one that shows most
    of the text around the token, which changes in the middle of what they share.

    Args:
        parts: what each window's sequence gave, an array with a row for each of its tokens, the
            special ones included.
        windows: see `cut_windows`.
        before: the special tokens that a sequence begins with.
    """
    rows = []
    begin = 0
    for i, ((first, last), part) in enumerate(zip(windows, parts, strict=True)):
        end = last if i + 1 == len(windows) else (windows[i + 1][0] + last + 1) // 2
        rows.append(part[before + begin - first : before + end - first])
        begin = end
    return np.concatenate(rows)
