"""Fuse the choice of the masked positions, which the language-model decoder reads.

::

    masked_positions (batch, n) ──► Reshape ─────────────────────────────────┐
    0, 0, ..., 1, 1, ... (the sequence of each) ───────────────────► Concat ◄┘
                                                                         │
    rows (batch, sequence, .) ─────────────────► GatherND ◄── Transpose ◄┘
                                                    └► (batch*n, .) ──► Reshape (batch, n, .)

becomes ``gather_positions``.
"""

from __future__ import annotations

import numpy as np

from bertrt.compiler.evaluate import dependencies
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    Match,
    NoMatchError,
    batch_axis,
    expect_user,
    layout,
    sequence_axis,
    values_of,
)

STEP = "gather_positions"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every GatherND; runs after the rows pass."""
    if node.op != "GatherND":
        return None
    rows, points = node.inputs
    if layout(graph, rows) != "batch first":
        raise NoMatchError(node, f"expected rows of all tokens, found {graph.types[rows]}")
    inputs = [name for name in dependencies(graph, points) if name in graph.inputs]
    shape = graph.shape(inputs[0]) if len(inputs) == 1 else ()
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    if len(shape) != 2 or shape[0] != batch:
        raise NoMatchError(node, "the positions are not an input (batch, n)")
    count = int(shape[1])
    drawn = np.random.default_rng(0).integers(0, length, (batch, count))
    known = {inputs[0]: drawn.astype(graph.types[inputs[0]].dtype)}
    expected = np.stack([np.repeat(np.arange(batch), count), drawn.ravel()], axis=-1)
    if not np.array_equal(values_of(graph, points, known).reshape(-1, 2), expected):
        raise NoMatchError(node, "the points are not each sequence with its positions")
    last, wanted = node, (batch, count, graph.shape(rows)[2])
    if graph.shape(node.output) != wanted:
        last = expect_user(graph, node, "Reshape", "(batch, n, hidden)")
    if graph.shape(last.output) != wanted:
        raise NoMatchError(last, f"expected (batch, n, hidden), found {graph.types[last.output]}")
    return Match(last, Node(STEP, "", (rows, inputs[0]), ()))
