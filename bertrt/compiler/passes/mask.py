"""What a mask hides: not a pass, but what the passes ask about masks.

A mask is a part of the graph that begins at one input, lengths (batch,) or ones and zeros
(batch, sequence), and ends where it changes scores or rows. Exporters take two nodes for it or
forty; here it is computed for right-padded sequences of every length, and must hide exactly the
padding. What it does to other masks does not matter, because no other reaches it: see
``bertrt.batch.PackedBatch.from_padded``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bertrt.compiler.evaluate import dependencies
from bertrt.compiler.ir import Graph
from bertrt.compiler.passes import NoMatchError, batch_axis, sequence_axis

__all__ = ["lengths_to_try", "mask_feed", "mask_input"]

_TRIES = 8  # of long fixed sequences not every length is tried


def mask_input(graph: Graph, value: str, *stop: str) -> str | None:
    """The one input that a mask is made of; None where it is made of none.

    ``stop`` are the values that the mask is applied to. Raises NoMatchError for a mask of another
    kind of input, or of several.
    """
    ends = dependencies(graph, value, stop) - set(stop)
    found = [name for name in graph.inputs if name in ends]
    if not found:
        return None
    shapes = ((batch_axis(graph),), (batch_axis(graph), sequence_axis(graph)))
    if len(found) > 1 or graph.shape(found[0]) not in shapes:
        listed = ", ".join(f"{name!r} {graph.types[name]}" for name in found)
        raise NoMatchError(
            graph.producer(value) or value,
            f"the mask is made of {listed}; expected one input, the lengths (batch,) or a mask "
            "(batch, sequence)",
        )
    return found[0]


def lengths_to_try(graph: Graph) -> Iterator[np.ndarray]:
    """Lengths (batch,) from 1 to the sequence's: each sequence has every length once, or, where
    there are many, a selection with the shortest and the longest."""
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    for offset in np.unique(np.linspace(0, length - 1, _TRIES).astype(int)):
        yield (offset + np.arange(batch) * max(1, length // 2)) % length + 1


def mask_feed(graph: Graph, name: str, lengths: np.ndarray) -> np.ndarray:
    """What the input ``name`` is for sequences of these lengths."""
    dtype = np.dtype(graph.types[name].dtype)
    if len(graph.shape(name)) == 1:
        return lengths.astype(dtype)
    return (np.arange(int(sequence_axis(graph))) < lengths[:, None]).astype(dtype)
