"""Recognise where the padded sequence leaves the encoder.

::

    x (sequence, batch, .) ──► Where(mask, ., 0) ──► Transpose ──► (batch, sequence, .)

    mask = Unsqueeze(Less(Unsqueeze(Range), valid_length))

becomes ``token_rows``, which no engine executes: in a packed batch there is no padding to set to
zero, and no order of the two axes. The Where is absent in models without ``valid_length``.
"""

from __future__ import annotations

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatchError, batch_axis, expect, range_over, sequence_axis

STEP = "token_rows"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a Transpose from (sequence, batch, .) to (batch, sequence, .)."""
    if node.op != "Transpose" or node.attrs["perm"] != (1, 0, 2):
        return None
    batch, length = batch_axis(graph), sequence_axis(graph)
    (rows,) = node.inputs
    if graph.shape(rows)[:2] != (length, batch):
        return None
    masked = graph.producer(rows)
    inputs: tuple[str, ...] = (rows,)
    attrs = {"mask": "none"}
    if masked is not None and masked.op == "Where":
        mask, rows, zero = masked.inputs
        if graph.scalar(zero) != 0:
            raise NoMatchError(masked, f"padding becomes {graph.scalar(zero)}, expected 0")
        less = expect(
            graph,
            expect(graph, mask, "Unsqueeze", "mask").inputs[0],
            "Less",
            "position before length",
        )
        positions = expect(graph, less.inputs[0], "Unsqueeze", "positions as a column")
        if (
            not range_over(graph, positions.inputs[0], length)
            or less.inputs[1] not in graph.inputs
            or graph.shape(less.inputs[1]) != (batch,)
            or graph.shape(mask) != (length, batch, 1)
        ):
            raise NoMatchError(less, "the mask is not position < valid_length")
        inputs, attrs = (rows, less.inputs[1]), {"mask": "valid_length"}
    return Match(node, Node(STEP, "", inputs, (), attrs))
