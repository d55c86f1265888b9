"""Fuse the choice of the first token of every sequence, which the pooler reads.

::

    rows (batch, sequence, .) ──► Slice [0:1] or Gather 0 ──► views ──► (batch, .)

becomes ``first_token``.
"""

from __future__ import annotations

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    VIEWS,
    Match,
    NoMatchError,
    batch_axis,
    elements,
    layout,
    row_numbers,
)

STEP = "first_token"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a Slice or Gather of all tokens' rows; runs after the rows pass."""
    if node.op not in ("Slice", "Gather") or graph.is_parametric(node.inputs[0]):
        return None
    (rows,) = node.inputs[:1]
    kind = layout(graph, rows)
    if kind is None or graph.shape(rows)[-1] != graph.shape(node.output)[-1]:
        return None
    batch, width = int(batch_axis(graph)), int(graph.shape(rows)[-1])
    last = node
    while graph.shape(last.output) != (batch, width):
        user = graph.only_user(last.output)
        if user is None or user.op not in VIEWS:
            raise NoMatchError(last, f"expected (batch, hidden), found {graph.types[last.output]}")
        last = user
    first = row_numbers(graph, kind)[:, :1] * width + np.arange(width)
    if not np.array_equal(elements(graph, last.output, rows), first):
        raise NoMatchError(node, "expected [0:1] of axis 1, the first token of every sequence")
    return Match(last, Node(STEP, "", (rows,), ()))
