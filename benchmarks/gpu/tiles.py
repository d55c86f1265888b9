"""Tiles of products beside each other, and beside the choice of linear() (docs/cuda.md)."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["ROWS", "compare", "shapes_of"]

# Of a batch, from a short text to SQuAD's features packed.
ROWS = (16, 128, 384, 1024, 4096, 16384, 61000)
TILES = ("small", "medium", "large", "wide")
DEEP = 2048  # inputs from which on there are no wide ones (csrc/cuda/depth.h)
DRAWN = 1024  # rows; more of them are these again


def shapes_of(hidden: int) -> list[tuple[int, int]]:
    """Outputs and inputs of a layer's products: queries, keys and values; attention's output; the
    two of the feed-forward network."""
    return [(3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]


def compare(
    kernels: ModuleType,
    multiprocessors: int,
    shape: tuple[int, int],
    rows_of: Iterable[int],
    repeats: int = 20,
) -> dict[str, dict[str, Any]]:
    """Microseconds in bf16 of each tile, the best, the chosen one, and how much longer that takes.

    Each product runs `repeats` times one after the other, so that the L2 cache holds what it can of
    weights and rows. In a model they come from memory.

    Args:
        shape: outputs and inputs.
        rows_of: numbers of rows, each a line of what is returned and printed.
    """
    outputs, inputs = shape
    rng = np.random.default_rng(0)
    most = max(rows_of)
    weight, x = (
        # The upper halves of floats: bf16.
        (rng.normal(size=(count, inputs)).astype(np.float32).view(np.uint32) >> 16).astype(
            np.uint16
        )
        for count in (outputs, min(most, DRAWN))
    )
    x = np.resize(x, (most, inputs))
    names = TILES if inputs < DEEP else TILES[:-1]
    found: dict[str, dict[str, Any]] = {}
    for rows in rows_of:
        times = {
            name: kernels.linear_seconds("bf16", x[:rows], weight, name, repeats) * 1e6
            for name in names
        }
        best = min(times, key=lambda name: times[name])
        chosen = kernels.choose_tiles("bf16", rows, outputs, inputs, multiprocessors)
        loses = times[chosen] / max(times[best], 1e-3) - 1
        key = f"{rows} x {outputs} x {inputs}"
        found[key] = {**times, "best": best, "chosen": chosen, "loses": loses}
        shown = "  ".join(f"{name} {time:9.1f}" for name, time in times.items())
        print(f"   {key:20} {shown:64} best {best:6} chosen {chosen:6} +{loses:.0%}", flush=True)
    return found
