"""Answers that are kept for the same input.

A text has the same bits in every batch, so that what was answered once is what would be answered
again. A key holds the whole input, and is compared as a whole: no two inputs share an entry.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np

__all__ = ["Cache"]

# What an entry takes beside its key and value: dictionary, link, tuple.
_ENTRY = 250


class Cache:
    """A dictionary of at most so many bytes, which forgets what was not asked for longest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any:
        """What is kept for a key; None: nothing."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value, unless it alone is larger than all may be."""
        if not self._most:
            return
        size = _ENTRY + _size(key) + _size(value)
        if size > self._most:
            return
        before = self._entries.pop(key, None)
        self.bytes += size - (0 if before is None else before[1])
        self._entries[key] = (value, size)
        while self.bytes > self._most:
            _, (_, gone) = self._entries.popitem(last=False)
            self.bytes -= gone


def _size(value: Any) -> int:
    """Bytes of memory, of what keys and results are made of."""
    if isinstance(value, np.ndarray):
        # A view keeps all of what it looks at.
        return int((value if value.base is None else np.asarray(value.base)).nbytes) + 128
    size = sys.getsizeof(value)
    if isinstance(value, tuple | list):
        size += sum(map(_size, value))
    elif isinstance(value, dict):
        size += sum(_size(key) + _size(part) for key, part in value.items())
    elif dataclasses.is_dataclass(value):
        # The attributes' dictionary, and what is in it.
        size += 200 + sum(_size(part) for part in vars(value).values())
    return size
