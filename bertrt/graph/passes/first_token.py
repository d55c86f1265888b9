"""Fuse the choice of the first token of every sequence, which the pooler reads.

::

    token_rows (batch, sequence, .) ──► Slice [0:1] ──► Reshape (batch, .)

becomes ``first_token``.
"""

from __future__ import annotations

import numpy as np

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatchError, batch_axis, expect, expect_user

STEP = "first_token"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a Slice of something with three axes; runs after the rows pass."""
    if node.op != "Slice" or len(graph.shape(node.output)) != 3:
        return None
    expect(graph, node.inputs[0], "token_rows", "the encoder's output")
    start, end, axes = (graph.array(value) for value in node.inputs[1:4])
    bounds = ((start, 0), (end, 1), (axes, 1))
    if not all(found is not None and np.array_equal(found, [wanted]) for found, wanted in bounds):
        raise NoMatchError(node, f"expected [0:1] of axis 1, found [{start}:{end}] of {axes}")
    last = expect_user(graph, node, "Reshape", "one row for each sequence")
    if graph.shape(last.output) != (batch_axis(graph), graph.shape(node.output)[2]):
        raise NoMatchError(last, f"expected (batch, hidden), found {graph.types[last.output]}")
    return Match(last, Node(STEP, "", node.inputs[:1], ()))
