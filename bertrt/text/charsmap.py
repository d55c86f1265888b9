"""SentencePiece's compiled table of normalisation, checked before the tokenizers library has it.

The library makes memory for as many units as the table says that it has, and follows them wherever
they lead: of a broken table it ends the process, or takes gigabytes. The layout is that of
SentencePiece's normalizer: the bytes of a trie as a uint32, a double-array trie of Darts' units of
32 bits, and the replacements, each ended by a zero byte.
"""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError

__all__ = ["check_charsmap", "check_charsmaps", "has_charsmap"]

# A step of the trie changes the lowest bits of a unit's place only, by a byte.
_BLOCK = 256
_IS_LEAF, _HAS_LEAF = 31, 8


def check_charsmap(charsmap: bytes, path: Path) -> None:
    """Refuse, with a ModelFormatError, a table that leads out of itself."""

    def refuse(why: str) -> None:
        raise ModelFormatError(f"{path}: its table of normalisation is broken: {why}")

    if len(charsmap) < 4:
        refuse(f"it has {len(charsmap)} bytes")
    size = int.from_bytes(charsmap[:4], "little")
    if size % 4 or size > len(charsmap) - 4:
        refuse(f"it is said to have a trie of {size} bytes, and has {len(charsmap)} in all")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    if not len(units) or len(units) % _BLOCK:
        refuse(f"its trie has {len(units)} units, which is no multiple of {_BLOCK}")
    leaf = units >> _IS_LEAF == 1
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    next_units = np.arange(len(units), dtype=np.int64) ^ offsets
    if (next_units[~leaf] >= len(units)).any():
        refuse("a unit of its trie leads out of it")
    leaves = next_units[~leaf & (units >> _HAS_LEAF & 1 == 1)]
    if not leaf[leaves].all():
        refuse("a unit of its trie leads to no leaf")
    values = units[leaves] & ((1 << _IS_LEAF) - 1)
    # A replacement begins where a character does.
    if (values >= len(texts)).any() or (texts[values] >> 6 == 2).any():
        refuse("a leaf of its trie leads to no replacement")


def has_charsmap(tokenizer: bytes) -> bool:
    """Whether a ``tokenizer.json`` may hold such a table: it names one, or spells letters as
    numbers, as nobody but one who hides something does."""
    return b"charsmap" in tokenizer or re.search(rb"\\u00[4-7]", tokenizer) is not None


def check_charsmaps(content: Any, path: Path) -> None:
    """Check all tables that the normalizer of a ``tokenizer.json`` with this content holds."""
    steps = [content.get("normalizer")] if isinstance(content, dict) else []
    while steps:
        step = steps.pop()
        if not isinstance(step, dict):
            continue
        inner = step.get("normalizers")
        steps += inner if isinstance(inner, list) else []
        said = step.get("precompiled_charsmap")
        if isinstance(said, str):
            try:
                check_charsmap(b64decode(said), path)
            except ValueError:
                raise ModelFormatError(
                    f"{path}: its table of normalisation is not in base64"
                ) from None
        elif said is not None:
            raise ModelFormatError(
                f"{path}: its table of normalisation is a {type(said).__name__}; expected a text"
            )
