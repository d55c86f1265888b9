"""Recognise where rows are only laid out another way, and where padding is set to zero.

::

    x (sequence, batch, .) ──► Where(mask, ., 0) ──► Transpose ──► (batch, sequence, .)

    x (batch, sequence, .) ──► Reshape ──► (batch * sequence, .)

become ``token_rows``, which no engine executes: in a packed batch there is no padding to set to
zero, and no order of the two axes. The Where is absent in models without ``valid_length``.
"""

from __future__ import annotations

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    VIEWS,
    Match,
    NoMatchError,
    elements,
    layout,
    row_numbers,
    sequence_axis,
    values_of,
)
from bertrt.compiler.passes.mask import lengths_to_try, mask_feed, mask_input

STEP = "token_rows"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a view from one layout of all tokens' rows to another."""
    if node.op not in VIEWS:
        return None
    (rows,) = node.inputs[:1]
    if graph.is_parametric(rows):
        return None
    before, after = layout(graph, rows), layout(graph, node.output)
    if before is None or after is None or graph.shape(rows)[-1] != graph.shape(node.output)[-1]:
        return None
    width = int(graph.shape(rows)[-1])
    shown = elements(graph, node.output, rows).reshape(-1, width)
    moved = row_numbers(graph, before)[..., None] * width + np.arange(width)
    if not np.array_equal(shown[row_numbers(graph, after)], moved):
        raise NoMatchError(node, "the rows of the tokens are not in their order")
    masked = graph.producer(rows)
    inputs: tuple[str, ...] = (rows,)
    attrs: dict[str, str] = {}
    if masked is not None and masked.op == "Where":
        condition, kept, zero = masked.inputs
        if graph.scalar(zero) != 0:
            raise NoMatchError(masked, f"padding becomes {graph.scalar(zero)}, expected 0")
        inputs, attrs = (kept, _hidden(graph, condition, before, masked)), {"mask": "valid_length"}
    return Match(node, Node(STEP, "", inputs, (), attrs))


def _hidden(graph: Graph, condition: str, kind: str, at: Node) -> str:
    """The input of the mask that keeps the tokens before each sequence's end."""
    mask = mask_input(graph, condition)
    shape = tuple(int(dim) for dim in graph.shape(at.output)[:-1])
    if mask is None or layout(graph, at.output) != kind:
        raise NoMatchError(at, "the mask is not position < valid_length")
    for lengths in lengths_to_try(graph):
        found = values_of(graph, condition, {mask: mask_feed(graph, mask, lengths)})
        shown = np.arange(int(sequence_axis(graph))) < lengths[:, None]
        if found.shape[-1] != 1 or not np.array_equal(
            np.broadcast_to(found[..., 0], shape).reshape(-1)[row_numbers(graph, kind)], shown
        ):
            raise NoMatchError(at, "the mask is not position < valid_length")
    return mask
