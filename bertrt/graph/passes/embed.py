"""Fuse the embeddings and their normalisation into one ``embed_layer_norm`` step.

::

    token_ids ────► Gather word ──┐
    token_types ──► Gather type ──┴► Add ──► Transpose (sequence first) ──┐
    0, 1, 2, ... ─► Gather position ──► Unsqueeze (sequence, 1, hidden) ──┴► Add ──► LayerNormalization

The token types, with their Add, may be absent.
"""

from __future__ import annotations

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatch, batch_axis, expect, range_over, sequence_axis

STEP = "embed_layer_norm"


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a LayerNormalization of a sum in which a position table takes part."""
    total = graph.producer(node.inputs[0]) if node.op == "LayerNormalization" else None
    if total is None or total.op != "Add":
        return None
    for tokens, positions in (total.inputs, total.inputs[::-1]):
        unsqueezed = graph.producer(positions)
        if unsqueezed is not None and unsqueezed.op == "Unsqueeze":
            break
    else:
        return None
    batch, length = batch_axis(graph), sequence_axis(graph)
    position_table = expect(graph, unsqueezed.inputs[0], "Gather", "position embedding", axis=0)
    if not range_over(graph, position_table.inputs[1], length):
        raise NoMatch(position_table, "positions are not 0, 1, 2, ... along the sequence")
    if graph.shape(positions)[:2] != (length, 1):
        raise NoMatch(unsqueezed, "the positions do not vary along the sequence axis")
    turned = expect(graph, tokens, "Transpose", "sequence first", perm=(1, 0, 2))
    if graph.shape(turned.inputs[0])[:2] != (batch, length):
        raise NoMatch(turned, f"expected (batch, sequence, .), found {graph.types[tokens]}")
    summed = graph.producer(turned.inputs[0])
    parts = summed.inputs if summed is not None and summed.op == "Add" else turned.inputs
    tables = [expect(graph, part, "Gather", "token embedding", axis=0) for part in parts]
    for table in tables:
        if table.inputs[1] not in graph.inputs:
            raise NoMatch(table, "its indices are not an input of the graph")
    # The ids come before the types in every exporter's order of inputs.
    tables.sort(key=lambda table: graph.inputs.index(table.inputs[1]))
    weights = dict(zip(("word", "type"), ((table.inputs[0],) for table in tables), strict=False))
    weights["position"] = (position_table.inputs[0],)
    weights |= {role: (v,) for role, v in zip(("gamma", "beta"), node.inputs[1:], strict=True)}
    for table in (*tables, position_table):
        if table.inputs[0] not in graph.constants:
            raise NoMatch(table, "its table is not a parameter")
    inputs = tuple(table.inputs[1] for table in tables)
    return Match(node, Node(STEP, "", inputs, (), {"eps": node.attrs["epsilon"]}, weights))
