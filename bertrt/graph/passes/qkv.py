"""Fuse the projection that feeds an attention into one ``qkv_linear`` step.

::

    query weight ─► Reshape ─┐
    key weight ───► Reshape ─┼► Concat ─► Reshape ─► Transpose ─┐
    value weight ─► Reshape ─┘                                  ▼
    x ───────────────────────────────────────────────────────► MatMul ──► Add ──► qkv
    (query, key and value bias) ──► Reshape ─► Concat ─► Reshape ─────────┘

The three arrays are interleaved head by head. Either side may also hold a parameter that is stored
interleaved already, rows ordered (head, query/key/value, head_dim).
"""

from __future__ import annotations

from math import prod

from bertrt.graph.ir import Graph, Node
from bertrt.graph.passes import Match, NoMatchError, expect

STEP = "qkv_linear"
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze")  # row-major order stays as it is


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at a fused attention; runs after that pass."""
    if node.op != "attention":
        return None
    qkv = node.inputs[0]
    added = expect(graph, qkv, "Add", "bias of query, key and value")
    # The step's result is ordered [Q | K | V], the graph's is not: nobody else may look.
    if graph.only_user(qkv) is not node:
        raise NoMatchError(added, "the projection is also used outside the attention")
    matmul = expect(graph, added.inputs[0], "MatMul", "projection to query, key and value")
    weight, transposed = matmul.inputs[1], True
    turned = graph.producer(weight)
    if turned is not None:
        expect(graph, weight, "Transpose", "weight", perm=(1, 0))
        weight, transposed = turned.inputs[0], False
    heads, head_dim = node.attrs["heads"], node.attrs["head_dim"]
    weights = _interleaved(graph, weight, heads)
    biases = _interleaved(graph, added.inputs[1], heads)
    if graph.shape(biases[0]) != (3 * heads * head_dim // len(biases),):
        raise NoMatchError(added, f"bias is {graph.types[biases[0]]}")
    attrs = {
        "heads": heads,
        "head_dim": head_dim,
        "weight_layout": _LAYOUT[len(weights)],
        "bias_layout": _LAYOUT[len(biases)],
        "transposed": transposed,
    }
    roles = {"weight": weights, "bias": biases}
    return Match(added, Node(STEP, "", matmul.inputs[:1], (), attrs, roles))


_LAYOUT = {1: "interleaved", 3: "separate"}


def _interleaved(graph: Graph, value: str, heads: int) -> tuple[str, ...]:
    """The parameters behind ``value``: one as it is, or three interleaved by head."""
    if value in graph.constants:
        return (value,)
    concat = expect(graph, _base(graph, value), "Concat", "query, key and value interleaved")
    parts = tuple(_base(graph, part) for part in concat.inputs)
    for part in parts:
        if part not in graph.constants:
            raise NoMatchError(concat, f"{part!r} is not a parameter")
    # Everything before the axis of the Concat counts the interleaved groups: one for each head.
    groups = prod(graph.shape(concat.inputs[0])[: concat.attrs["axis"]])
    alike = len({graph.shape(part) for part in concat.inputs}) == 1
    if len(parts) != 3 or groups != heads or not alike:
        raise NoMatchError(concat, f"{len(parts)} parts in {groups} groups; expected 3 in {heads}")
    return parts


def _base(graph: Graph, value: str) -> str:
    node = graph.producer(value)
    while node is not None and node.op in _VIEWS:
        value = node.inputs[0]
        node = graph.producer(value)
    return value
