"""Fuse the choice of the masked positions, which the language-model decoder reads.

::

    masked_positions (batch, n) ──► Reshape ─────────────────────────────────┐
    Range(batch*n) ──► Div by n (the sequence of each) ──► Reshape ──► Concat ◄┘
                                                                         │
    token_rows (batch, sequence, .) ───────────► GatherND ◄── Transpose ◄┘
                                                    └► (batch*n, .) ──► Reshape (batch, n, .)

becomes ``gather_positions``.
"""

from __future__ import annotations

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatchError, batch_axis, expect, expect_user, range_over

STEP = "gather_positions"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every GatherND; runs after the rows pass."""
    if node.op != "GatherND":
        return None
    rows = expect(graph, node.inputs[0], "token_rows", "the encoder's output")
    turned = expect(graph, node.inputs[1], "Transpose", "one point a row", perm=(1, 0))
    pair = expect(graph, turned.inputs[0], "Concat", "sequence and position", axis=0)
    if len(pair.inputs) != 2:
        raise NoMatchError(pair, f"{len(pair.inputs)} parts, expected sequence and position")
    flat = expect(graph, pair.inputs[1], "Reshape", "positions in a row")
    (positions,) = flat.inputs[:1]
    if positions not in graph.inputs or len(graph.shape(positions)) != 2:
        raise NoMatchError(flat, "the positions are not an input (batch, n)")
    batch, count = graph.shape(positions)
    numbers = expect(graph, pair.inputs[0], "Reshape", "sequence numbers in a row")
    division = expect(graph, numbers.inputs[0], "Div", "sequence number of each position")
    total = graph.shape(flat.output)[-1]
    divisor = graph.types[division.inputs[1]].content
    if (
        batch != batch_axis(graph)
        or not range_over(graph, division.inputs[0], total)
        or divisor != (count,)
    ):
        raise NoMatchError(division, "the sequence numbers are not 0, 1, 2, ... divided by n")
    last = expect_user(graph, node, "Reshape", "(batch, n, hidden)")
    if graph.shape(last.output) != (batch, count, graph.shape(rows.output)[2]):
        raise NoMatchError(last, f"expected (batch, n, hidden), found {graph.types[last.output]}")
    return Match(last, Node(STEP, "", (rows.output, positions), ()))
