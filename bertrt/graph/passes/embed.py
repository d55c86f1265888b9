"""Fuse the embeddings and their normalisation into one ``embed_layer_norm`` step.

::

    token_ids ────► Gather word ─► Add ──► Transpose (sequence first) ─┐
    token_types ──► Gather type ────┘                                  ▼
    0, 1, 2, ... ─► Gather position ──► Unsqueeze (sequence, 1, .) ─► Add ─► LayerNormalization

The token types, with their Add, may be absent.
"""

from __future__ import annotations

from bertrt.graph.ir import Graph, Node, Weights
from bertrt.graph.passes import (
    Match,
    NoMatchError,
    batch_axis,
    expect,
    expect_user,
    range_over,
    sequence_axis,
)

STEP = "embed_layer_norm"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at the Gather of positions 0, 1, 2, ... from a table."""
    batch, length = batch_axis(graph), sequence_axis(graph)
    if node.op != "Gather" or not range_over(graph, node.inputs[1], length):
        return None
    unsqueezed = expect_user(graph, node, "Unsqueeze", "positions for every sequence")
    if graph.shape(unsqueezed.output)[:2] != (length, 1):
        raise NoMatchError(unsqueezed, "the positions do not vary along the sequence axis")
    total = expect_user(graph, unsqueezed, "Add", "tokens plus positions")
    last = expect_user(graph, total, "LayerNormalization", "normalisation of the sum", axis=2)
    tokens = total.inputs[0] if total.inputs[1] == unsqueezed.output else total.inputs[1]
    turned = expect(graph, tokens, "Transpose", "sequence first", perm=(1, 0, 2))
    if graph.shape(turned.inputs[0])[:2] != (batch, length):
        raise NoMatchError(turned, f"expected (batch, sequence, .), found {graph.types[tokens]}")
    summed = graph.producer(turned.inputs[0])
    parts = summed.inputs if summed is not None and summed.op == "Add" else turned.inputs
    tables = [expect(graph, part, "Gather", "token embedding", axis=0) for part in parts]
    for table in tables:
        if table.inputs[1] not in graph.inputs:
            raise NoMatchError(table, "its indices are not an input of the graph")
    if len({table.inputs[1] for table in tables}) != len(tables):
        raise NoMatchError(tables[0], "ids and types are the same input of the graph")
    # The ids come before the types in every exporter's order of inputs.
    tables.sort(key=lambda table: graph.inputs.index(table.inputs[1]))
    weights: Weights = {}
    for role, table in zip(("word", "type"), tables, strict=False):
        weights[role] = (table.inputs[0],)
    weights["position"] = (node.inputs[0],)
    if len(last.inputs) != 3:
        raise NoMatchError(last, "it has no beta")
    weights |= {"gamma": (last.inputs[1],), "beta": (last.inputs[2],)}
    for names in weights.values():
        if names[0] not in graph.constants:
            raise NoMatchError(last, f"{names[0]!r} is not a parameter")
    inputs = tuple(table.inputs[1] for table in tables)
    return Match(last, Node(STEP, "", inputs, (), {"eps": last.attrs["epsilon"]}, weights))
